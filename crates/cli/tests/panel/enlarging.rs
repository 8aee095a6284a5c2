//! Pictures made larger by a network, and chains of steps, in the panel.

use std::path::Path;

use crate::Visit;
use crate::cdp::CTRL;
use crate::service::Service;

/// A service that has a network of the tests: four times, in two blocks.
fn service(networks: &Path) -> Service {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures/upscale");
    std::fs::copy(
        fixtures.join("compact-4.pth"),
        networks.join("compact-4.pth"),
    )
    .unwrap();
    let folders = format!("models.dirs={}", networks.display());
    Service::start_with(&["--set", &folders], &[])
}

#[test]
fn a_picture_is_made_larger_and_compared_and_a_chain_tells_its_steps() {
    let name = "a_picture_is_made_larger_and_compared_and_a_chain_tells_its_steps";
    let networks = tempfile::tempdir().unwrap();
    let Some(visit) = Visit::begin_at(name, (1280, 1100), || service(networks.path())) else {
        return;
    };
    let page = &visit.page;
    page.wait(
        "there is a network",
        "!document.querySelector('#enlarge-card').hidden && document.querySelector('#enlarge-model').options.length === 1",
    );
    page.click("#make-prompt");
    page.write("a blue star");
    page.press("Enter", CTRL);
    page.wait(
        "a picture is there",
        "document.querySelectorAll('#gallery-list .thumb').length === 1",
    );
    page.click("#gallery-list .thumb");
    page.wait(
        "it can be made larger",
        "document.querySelector('#picture').open && document.querySelector('#picture-acts [data-act=enlarge]')",
    );
    page.click("#picture-acts [data-act=enlarge]");
    page.wait(
        "the card has it, and a plan says what it takes",
        "!document.querySelector('#picture').open && /\\d+ × \\d+/.test(document.querySelector('#enlarge-state').textContent) && \
         /\\d.*[KM]iB/.test(document.querySelector('#enlarge-plan').innerText)",
    );
    let before = page.number("document.querySelector('#enlarge-before').naturalWidth");
    page.click("#enlarge-go");
    page.wait(
        "it is made",
        "!document.querySelector('#enlarge-after').hidden && document.querySelector('#enlarge-after').naturalWidth > 0",
    );
    let after = page.number("document.querySelector('#enlarge-after').naturalWidth");
    assert!(after == 4.0 * before, "{before} became {after}");
    page.wait(
        "both sizes are told, and the network is in memory",
        "document.querySelector('#enlarge-state').textContent.includes('→') && \
         ['device', 'host', 'unloaded'].includes(document.querySelector('#models-list [data-key^=\"compact-4\"]').dataset.residency)",
    );
    page.eval("document.querySelector('#enlarge-at').value = 20; document.querySelector('#enlarge-at').dispatchEvent(new Event('input', { bubbles: true }))");
    assert_eq!(
        page.text("document.querySelector('#enlarge-view').style.getPropertyValue('--at')"),
        "20%"
    );
    page.eval("document.querySelector('#enlarge-card').scrollIntoView()");
    page.screenshot("enlarged");
    page.eval(
        "fetch('/v1/jobs', { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({
             model: 'demo', request: { prompt: 'a green ring', seed: 3 },
             then: [{ kind: 'upscale', model: document.querySelector('#enlarge-model').value, request: {} }],
         }) }).then((answer) => answer.status)",
    );
    page.wait(
        "the chain's picture is there",
        "document.querySelectorAll('#gallery-list .thumb').length === 3",
    );
    page.click("#gallery-list .thumb");
    page.wait(
        "its steps are told, with what they took",
        "document.querySelectorAll('#picture-steps li .bar').length === 2",
    );
    page.screenshot("chain");
    visit.end();
}
