//! A systemd with units of tcptracker in given states.

use zbus::{ObjectPath, OwnedObjectPath, interface};

use crate::bus::Bus;
use crate::fake_service::FakeService;

/// A unit of tcptracker, as systemd reports it.
#[derive(Clone)]
pub struct FakeUnit {
    pub name: &'static str,
    pub active: &'static str,
    pub sub: &'static str,
    pub result: &'static str,
    pub exit_status: i32,
    pub status: &'static str,
}

struct Manager(Vec<FakeUnit>);

/// An element of the reply of `ListUnitsByPatterns`.
type Listed =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

fn path_of(number: usize) -> OwnedObjectPath {
    ObjectPath::try_from(format!("/org/freedesktop/systemd1/unit/n{number}")).unwrap().into()
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn list_units_by_patterns(&self, states: Vec<String>, patterns: Vec<String>) -> Vec<Listed> {
        assert_eq!((states, patterns), (vec![], vec!["tcptracker@*.service".to_owned()]));
        let listed = |(number, unit): (usize, &FakeUnit)| {
            let [name, active, sub] = [unit.name, unit.active, unit.sub].map(str::to_owned);
            let none = String::new;
            let loaded = "loaded".to_owned();
            let job = path_of(99);
            (name, none(), loaded, active, sub, none(), path_of(number), 0, none(), job)
        };
        self.0.iter().enumerate().map(listed).collect()
    }
}

#[interface(name = "org.freedesktop.systemd1.Service")]
impl FakeUnit {
    #[zbus(property)]
    fn result(&self) -> String {
        self.result.to_owned()
    }

    #[zbus(property)]
    fn exec_main_status(&self) -> i32 {
        self.exit_status
    }

    #[zbus(property)]
    fn status_text(&self) -> String {
        self.status.to_owned()
    }
}

/// Starts a systemd that reports these units.
pub fn fake_systemd(bus: &Bus, units: Vec<FakeUnit>) -> FakeService {
    FakeService::start(bus, move |mut builder| {
        for (number, unit) in units.iter().enumerate() {
            builder = builder.serve_at(path_of(number), unit.clone());
        }
        builder
            .serve_at("/org/freedesktop/systemd1", Manager(units))
            .name("org.freedesktop.systemd1")
    })
}
