//! The panel of a service that needs a key.

use crate::cdp::{Browser, CTRL};
use crate::service::Service;
use crate::skip;

#[test]
fn the_panel_asks_for_a_key_and_works_with_it_pictures_included() {
    let test = "the_panel_asks_for_a_key_and_works_with_it_pictures_included";
    let browser = match Browser::start() {
        Ok(browser) => browser,
        Err(reason) => return skip(test, &reason),
    };
    let service = Service::start_with(&["--set", "server.access=keys"], &[]);
    let key = service.key("anna");
    let page = browser.open(&service.url, 1280, 800);
    page.wait("it asks", "document.querySelector('#key-ask').open");
    page.fill("#key-text", "lt_wrong");
    page.click("#key-form button[type=submit]");
    page.wait(
        "it says that this one is wrong",
        "document.querySelector('#key-ask').open && !document.querySelector('#key-wrong').hidden",
    );
    page.screenshot("key");
    page.fill("#key-text", &key);
    page.click("#key-form button[type=submit]");
    page.wait(
        "everything is there",
        "!document.querySelector('#key-ask').open && document.body.dataset.link === 'up' && \
         document.querySelector('#worker').dataset.state === 'idle' && \
         document.querySelector('#models-list [data-key=demo]')",
    );
    page.click("#make-prompt");
    page.write("a red heart");
    page.press("Enter", CTRL);
    page.wait(
        "the picture is there",
        "document.querySelector('#stage').dataset.state === 'done' && \
         document.querySelector('#stage-view .picture img').naturalWidth > 0",
    );
    page.wait(
        "and small in the gallery",
        "[...document.querySelectorAll('#gallery-list img')].some((image) => image.naturalWidth > 0)",
    );
    let kept = page.text("JSON.stringify([localStorage, document.cookie, location.href])");
    assert!(
        !kept.contains(&key),
        "neither stored for longer, nor in a cookie or the address"
    );
    assert_eq!(page.text("sessionStorage.getItem('lowtide.key')"), key);
    page.eval("location.reload()");
    page.wait(
        "the tab still has it",
        "document.body.dataset.link === 'up' && !document.querySelector('#key-open').hidden",
    );
}
