//! The panel as a person meets it: in a real Chromium, at the real service. Where there is no Chromium the tests that need
//! one say so in the file named by `$LOWTIDE_TEST_SKIPS`.
//!
//! `$LOWTIDE_CHROMIUM` names the browser; `$LOWTIDE_SCREENSHOTS` names a folder that gets pictures of what was seen.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

mod cdp;
mod enlarging;
mod fetching;
mod keyed;
mod service;
mod visits;
mod words;

use cdp::{Browser, Page};
use service::Service;

/// A service, a browser, and the panel open in it.
struct Visit {
    page: Page,
    _browser: Browser,
    _service: Service,
}

impl Visit {
    /// `None`, said loudly, where there is no Chromium.
    fn begin(test: &str, width: u32, height: u32) -> Option<Visit> {
        Visit::begin_at(test, (width, height), Service::start)
    }

    /// As [`Visit::begin`], at another service.
    fn begin_at(
        test: &str,
        (width, height): (u32, u32),
        service: impl FnOnce() -> Service,
    ) -> Option<Visit> {
        let browser = match Browser::start() {
            Ok(browser) => browser,
            Err(reason) => {
                skip(test, &reason);
                return None;
            }
        };
        let service = service();
        let page = browser.open(&service.url, width, height);
        page.wait(
            "the words are there and the stream is up",
            "document.body.dataset.ready && document.body.dataset.link === 'up'",
        );
        page.wait(
            "a worker and the demo model are there",
            "document.querySelector('#worker').dataset.state === 'idle' && \
             document.querySelector('#models-list [data-key=demo]')",
        );
        Some(Visit {
            page,
            _browser: browser,
            _service: service,
        })
    }

    /// Nothing was complained about: no error on the console, no file that was missing, no breach of the content policy.
    fn end(self) {
        assert_eq!(self.page.complaints(), Vec::<String>::new());
    }
}

fn skip(test: &str, reason: &str) {
    eprintln!("skipped, not passed: {test}: {reason}");
    if let Some(file) = std::env::var_os("LOWTIDE_TEST_SKIPS") {
        use std::io::Write;
        let mut skips = std::fs::File::options().append(true).open(file).unwrap();
        writeln!(skips, "panel::{test}: {reason}").unwrap();
    }
}
