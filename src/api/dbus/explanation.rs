//! The answer of `Why`: what is known about an address.
//!
//! Owns the keys. A key that does not apply is absent.

use std::collections::HashMap;
use std::net::IpAddr;

use zbus::{OwnedVariant, Variant};

use crate::handles::{BlockExplanation, Explanation};
use crate::types::{Evidence, Pending, WallClock, show_network};

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
    let Some(Evidence { kind, attempts, rule, threshold, span, decoy, .. }) = evidence else {
        return;
    };
    put(answer, "kind", kind.as_str());
    put(answer, "rule", rule.sentence(threshold, span));
    put(answer, "threshold", u32::try_from(threshold).unwrap_or(u32::MAX));
    put(answer, "window", span.as_secs());
    put(answer, "ports", attempts.iter().map(|attempt| attempt.port.0).collect::<Vec<u16>>());
    put(answer, "times", times);
    if !attempts.iter().all(|attempt| attempt.outcome.is_unknown()) {
        let outcomes = attempts.iter().map(|attempt| attempt.outcome.as_str());
        put(answer, "outcomes", outcomes.collect::<Vec<&str>>());
    }
    if decoy {
        put(answer, "decoy", true);
    }
}

/// Returns the keys of an explanation of a source that is not blocked.
pub fn answer_pending(pending: &Pending, clock: &WallClock) -> Answer {
    fn all<'a, T, V>(items: &'a [T], value: impl Fn(&'a T) -> V) -> Vec<V> {
        items.iter().map(value).collect()
    }
    let Pending { progress, failures } = pending;
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let host = |host: Option<IpAddr>| host.map_or_else(String::new, |host| host.to_string());
    let mut answer = Answer::new();
    let rules = all(progress, |progress| progress.rule.sentence(progress.threshold, progress.span));
    put(&mut answer, "rules", rules);
    put(&mut answer, "counts", all(progress, |progress| number(progress.count)));
    put(&mut answer, "thresholds", all(progress, |progress| number(progress.threshold)));
    put(&mut answer, "windows", all(progress, |progress| progress.span.as_secs()));
    put(&mut answer, "rule_hosts", all(progress, |progress| host(progress.host)));
    put(&mut answer, "hosts", all(failures, |judged| host(judged.host)));
    put(&mut answer, "ports", all(failures, |judged| judged.attempt.port.0));
    put(&mut answer, "times", all(failures, |judged| clock.unix_time(judged.attempt.moment)));
    put(&mut answer, "outcomes", all(failures, |judged| judged.attempt.outcome.as_str()));
    put(&mut answer, "decisions", all(failures, |judged| judged.decision.as_str()));
    answer
}

fn put<'a>(answer: &mut Answer, key: &'static str, value: impl Into<Variant<'a>>) {
    // Fails only for file descriptors.
    if let Ok(value) = value.into().try_into() {
        answer.insert(key, value);
    }
}
