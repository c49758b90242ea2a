//! The CI workflows call only existing targets of the Makefile.

use std::path::Path;

#[test]
fn every_workflow_step_is_a_makefile_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let makefile = std::fs::read_to_string(root.join("Makefile")).unwrap();
    let is_target = |word: &str| makefile.lines().any(|line| line.starts_with(&format!("{word}:")));
    let workflows = std::fs::read_dir(root.join(".github/workflows")).unwrap();
    let mut steps = 0;
    for workflow in workflows {
        let text = std::fs::read_to_string(workflow.unwrap().path()).unwrap();
        for step in text.lines().filter_map(|line| line.trim().strip_prefix("- run: ")) {
            // Installing a toolchain component is the only step outside the Makefile.
            if step.starts_with("rustup component add ") {
                continue;
            }
            let words: Vec<&str> = step.split_whitespace().collect();
            let (program, targets) = words.split_first().unwrap();
            assert_eq!(*program, "make", "{step}");
            for word in targets.iter().filter(|word| !word.contains('=')) {
                assert!(is_target(word), "no target {word} in the Makefile: {step}");
                steps += 1;
            }
        }
        assert!(!text.contains("run: |"), "a step of several lines belongs in the Makefile");
    }
    assert!(steps >= 4, "build, lint, test and coverage at least");
}
