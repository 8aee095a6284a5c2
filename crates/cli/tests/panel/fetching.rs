//! Getting a model by its name, in the panel.

#[allow(
    dead_code,
    reason = "the server is shared with the tests of the crate that pulls"
)]
#[path = "../../../hub/tests/pull/server.rs"]
mod hub_server;

use std::collections::BTreeMap;
use std::path::Path;

use hub_server::{Fault, Hub, Served};

use crate::Visit;
use crate::service::Service;

const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";

/// The demo model as a repository whose largest file stops on its way.
fn hub() -> Hub {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let mut files = BTreeMap::new();
    let mut open = vec![demo.clone()];
    while let Some(folder) = open.pop() {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let name = path.strip_prefix(&demo).unwrap().to_string_lossy();
            let large = bytes.len() >= 1 << 20;
            files.insert(name.replace('\\', "/"), Served { bytes, large });
        }
    }
    let hub = Hub::serve(files);
    hub.fault(WEIGHTS, Fault::Gate(512 << 10));
    hub
}

#[test]
fn a_model_is_looked_at_fetched_stopped_and_fetched_on() {
    let hub = hub();
    let service = || {
        let variables = [("HF_ENDPOINT", hub.url())];
        Service::start_with(&["--set", "models.download=true"], &variables)
    };
    let name = "a_model_is_looked_at_fetched_stopped_and_fetched_on";
    let Some(visit) = Visit::begin_at(name, (1280, 1000), service) else {
        return;
    };
    let page = &visit.page;
    page.wait(
        "the form is there",
        "!document.querySelector('#get').hidden",
    );
    page.click("#get-name");
    page.write("org/name");
    page.press("Enter", 0);
    let offer = "document.querySelector('#get-offer').innerText";
    page.wait(
        "its size and the free disk are told",
        &format!("(({offer}).match(/[KMGT]iB/g) || []).length >= 2"),
    );
    page.screenshot("offer");
    page.click("#get-go");
    let card = "document.querySelector('#downloads-list [data-key=\"org/name\"]')";
    page.wait(
        "the bar moves",
        &format!("{card} && {card}.dataset.state === 'fetching' && {card}.querySelector('progress').value > 0.05"),
    );
    page.wait(
        "bytes are told",
        &format!("/[KM]iB/.test({card}.querySelector('.facts').innerText)"),
    );
    page.screenshot("downloading");
    page.click("#downloads-list [data-act=stop]");
    page.wait("it stopped", &format!("{card}.dataset.state === 'stopped'"));
    page.click("#downloads-list [data-act=again]");
    page.wait(
        "it goes on",
        &format!("{card}.dataset.state === 'fetching'"),
    );
    hub.release();
    page.wait(
        "it is a model as any other",
        "document.querySelector('#models-list [data-key=\"org/name\"]') && \
         [...document.querySelector('#make-model').options].some((one) => one.value === 'org/name')",
    );
    page.wait(
        "the bar is gone",
        "document.querySelector('#downloads-list').hidden",
    );
    page.screenshot("downloaded");
    visit.end();
}

#[test]
fn a_service_that_fetches_nothing_says_so() {
    let Some(visit) = Visit::begin("a_service_that_fetches_nothing_says_so", 1280, 1000) else {
        return;
    };
    let page = &visit.page;
    page.wait(
        "the way to it is told",
        "!document.querySelector('#get-none').hidden && \
         document.querySelector('#get-none').textContent.includes('models.download')",
    );
    assert_eq!(page.eval("document.querySelector('#get').hidden"), true);
    visit.end();
}
