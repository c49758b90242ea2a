//! The answer of `Why`: what is known about an address.
//!
//! Owns the keys. A key that does not apply is absent.

use std::collections::HashMap;

use zbus::{OwnedVariant, Variant};

use crate::handles::{BlockExplanation, Explanation};
use crate::types::show_network;

/// Keys and values.
pub type Answer = HashMap<&'static str, OwnedVariant>;

/// Returns the keys of an explanation.
pub fn answer(explanation: Explanation) -> Answer {
    let Explanation { network, block, offences, exempt, grace_until } = explanation;
    let mut answer = Answer::new();
    put(&mut answer, "address", show_network(&network));
    put(&mut answer, "blocked", block.is_some());
    put(&mut answer, "offences", offences);
    if let Some(block) = block {
        put_block(&mut answer, block);
    }
    if let Some(why) = exempt {
        put(&mut answer, "exempt", why.to_string());
    }
    if let Some(until) = grace_until {
        put(&mut answer, "grace_until", until);
    }
    answer
}

fn put_block(answer: &mut Answer, block: BlockExplanation) {
    let BlockExplanation { since, until, reason, evidence, times, dropped } = block;
    put(answer, "since", since);
    put(answer, "until", until);
    put(answer, "reason", reason);
    if let Some(dropped) = dropped {
        put(answer, "dropped", dropped);
    }
    if let Some(evidence) = evidence {
        put(answer, "kind", evidence.kind.as_str());
        let rule = evidence.rule.sentence(evidence.threshold, evidence.span);
        put(answer, "rule", rule);
        put(answer, "threshold", u32::try_from(evidence.threshold).unwrap_or(u32::MAX));
        put(answer, "window", evidence.span.as_secs());
        let ports: Vec<u16> = evidence.attempts.iter().map(|attempt| attempt.port.0).collect();
        put(answer, "ports", ports);
        put(answer, "times", times);
        if !evidence.attempts.iter().all(|attempt| attempt.outcome.is_unknown()) {
            let outcomes: Vec<&str> =
                evidence.attempts.iter().map(|attempt| attempt.outcome.as_str()).collect();
            put(answer, "outcomes", outcomes);
        }
        if evidence.decoy {
            put(answer, "decoy", true);
        }
    }
}

fn put<'a>(answer: &mut Answer, key: &'static str, value: impl Into<Variant<'a>>) {
    // Fails only for file descriptors.
    if let Ok(value) = value.into().try_into() {
        answer.insert(key, value);
    }
}
