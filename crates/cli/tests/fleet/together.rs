//! What people see of several machines, and of a store that is away.

use std::time::Duration;

use serde_json::json;

use crate::machines::{Files, Machines};
use crate::ordeal::wait;

const SOON: Duration = Duration::from_secs(60);

/// Every worker of the fleet is in the answers, and a store that is away is told as such, soon, and is there again.
#[test]
fn a_fleet_is_seen_whole_and_a_lost_store_is_told() {
    let Some(machines) = Machines::new("a_fleet_is_seen_whole", Files::Folder) else {
        return;
    };
    machines.start();
    wait("three workers", SOON, || {
        let (status, health) = machines.get("/health")?;
        let workers = health["workers"].as_array()?;
        let alive = workers.iter().filter(|worker| worker["alive"] == true);
        (status == 200 && alive.count() == 3).then_some(())
    });
    let (_, health) = machines.get("/health").unwrap();
    let ps = machines.verb("ps");
    for worker in health["workers"].as_array().unwrap() {
        let name = worker["worker"].as_str().unwrap();
        assert!(ps.contains(name), "{name} is not in: {ps}");
    }
    machines.redis().kill();
    let told = wait("the trouble to be told", SOON, || {
        let (status, health) = machines.get("/health")?;
        (status == 503).then(|| health["status"].as_str().map(str::to_owned))?
    });
    assert!(told.contains("unreachable"), "{told}");
    assert!(machines.redis().restart());
    let body = json!({ "kind": "no-op", "model": "no-op", "request": {} });
    wait("a job to be accepted", SOON, || {
        machines.post("/v1/jobs", &body, Some("after"))
    });
    wait("the service to be well", SOON, || {
        (machines.get("/health")?.0 == 200).then_some(())
    });
    machines.stop();
}
