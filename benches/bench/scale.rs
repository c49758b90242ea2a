//! Hosts with many addresses, exemptions or routes: what the service costs while a little traffic flows.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::lab::Lab;
use crate::row;

const SPAN: Duration = Duration::from_secs(10);

/// 1,000 SYNs per second during the span.
const TRAFFIC: [&str; 5] = ["send", "ve0", "10000", "1000", "100"];

const BAR: &str = "at most 2 % of a core";

pub(crate) fn run() {
    let plain = share(&Lab::new(), &[], 0);
    report("5,000 own addresses", own_addresses(), plain);
    report("100,000 exemptions", exemptions(), plain);
    report("1,100,000 routes, 10 changes per second", routes(), plain);
}

fn own_addresses() -> f64 {
    let lab = Lab::new();
    let own = numbered(Ipv4Addr::new(10, 79, 0, 0), 5000);
    lab.batch(own.map(|address| format!("addr add {address}/32 dev lo")));
    share(&lab, &[], 0)
}

fn exemptions() -> f64 {
    let lab = Lab::new();
    let exempt: Vec<String> = numbered(Ipv4Addr::new(100, 64, 0, 0), 100_000)
        .map(|address| format!("\"{address}\""))
        .collect();
    let file = lab.state().join("tcptracker.toml");
    std::fs::write(&file, format!("[exempt]\nnetworks = [{}]\n", exempt.join(", "))).unwrap();
    share(&lab, &["--config", file.to_str().unwrap()], 0)
}

fn routes() -> f64 {
    let lab = Lab::new();
    let routes = numbered(Ipv4Addr::new(100, 64, 0, 0), 1_100_000);
    lab.batch(routes.map(|address| format!("route add {address} via 10.78.0.1")));
    share(&lab, &[], 10)
}

fn report(what: &str, share: f64, plain: f64) {
    let (ours, reference) = (format!("{share:.1} %"), format!("{plain:.1} %"));
    row(&format!("scale: CPU with {what}"), &ours, &reference, None, BAR);
}

fn numbered(first: Ipv4Addr, count: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..count).map(move |number| Ipv4Addr::from_bits(first.to_bits() + number))
}

/// Returns the share of a core that the service uses, in percent.
fn share(lab: &Lab, arguments: &[&str], route_changes: u32) -> f64 {
    let service = lab.serve_as("classic", arguments);
    std::thread::sleep(Duration::from_secs(5));
    let before = service.cpu();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..route_changes * 10 {
                lab.change_route(number);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        lab.attack(&TRAFFIC);
        std::thread::sleep(SPAN.saturating_sub(begun.elapsed()));
    });
    (service.cpu() - before) / begun.elapsed().as_nanos() as f64 * 100.0
}
