//! A small client of Chrome's DevTools protocol: starts a browser of its own, opens pages, asks, types, clicks, drops.
//! <https://chromedevtools.github.io/devtools-protocol/>

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

const START_MAX: Duration = Duration::from_secs(30);
/// Longer than any condition is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(90);
const CONDITION_MS_MAX: u64 = 60_000;
const NAMES: [&str; 4] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];

/// Modifier keys of the protocol.
pub(crate) const CTRL: u32 = 2;

/// A browser with a profile of its own; both vanish.
pub(crate) struct Browser {
    process: Child,
    line: Rc<RefCell<Line>>,
    _profile: tempfile::TempDir,
}

/// An open page.
pub(crate) struct Page {
    line: Rc<RefCell<Line>>,
    session: String,
}

/// The connection, and what was complained about meanwhile.
struct Line {
    socket: WebSocket<TcpStream>,
    asked: u64,
    complaints: Vec<String>,
}

impl Browser {
    /// # Errors
    /// A sentence when there is no Chromium. That one is there and does not start is a panic.
    pub(crate) fn start() -> Result<Browser, String> {
        let program =
            program().ok_or("no Chromium was found; install one or name it in LOWTIDE_CHROMIUM")?;
        let profile = tempfile::tempdir().unwrap();
        let mut process = Command::new(&program)
            .args([
                "--headless=new",
                "--no-sandbox",
                "--no-first-run",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--lang=en-US",
                "--force-prefers-reduced-motion",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .env("LANGUAGE", "en_US")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let (tell, told) = mpsc::channel();
        let mut words = BufReader::new(process.stderr.take().unwrap());
        // Reads on to the end, so that the browser never waits for a reader.
        std::thread::spawn(move || {
            let mut line = String::new();
            while words.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                if let Some(url) = line.trim().strip_prefix("DevTools listening on ") {
                    let _ = tell.send(url.to_owned());
                }
                line.clear();
            }
        });
        let url = told
            .recv_timeout(START_MAX)
            .expect("the browser says where it listens");
        Ok(Browser {
            process,
            line: Rc::new(RefCell::new(Line::connect(&url))),
            _profile: profile,
        })
    }

    /// Opens a page of this size.
    pub(crate) fn open(&self, url: &str, width: u32, height: u32) -> Page {
        let mut line = self.line.borrow_mut();
        let target = line.ask("", "Target.createTarget", json!({ "url": "about:blank" }));
        let attached = line.ask(
            "",
            "Target.attachToTarget",
            json!({ "targetId": target["targetId"], "flatten": true }),
        );
        let session = attached["sessionId"].as_str().unwrap().to_owned();
        drop(line);
        let page = Page {
            line: Rc::clone(&self.line),
            session,
        };
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            page.ask(domain, json!({}));
        }
        page.resize(width, height);
        page.ask("Page.navigate", json!({ "url": url }));
        page.wait(
            "the page is read",
            &format!("location.href.startsWith('{url}') && document.readyState === 'complete'"),
        );
        page
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("LOWTIDE_CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .flat_map(|folder| NAMES.map(|name| folder.join(name)))
        .find(|candidate| candidate.is_file())
}

impl Line {
    fn connect(url: &str) -> Line {
        let host = url.trim_start_matches("ws://").split('/').next().unwrap();
        let stream = TcpStream::connect(host).unwrap();
        stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        let (socket, _) = tungstenite::client(url, stream).unwrap();
        Line {
            socket,
            asked: 0,
            complaints: Vec::new(),
        }
    }

    /// Asks and waits for the answer; events that come before it are looked through.
    fn ask(&mut self, session: &str, method: &str, params: Value) -> Value {
        self.asked += 1;
        let mut question = json!({ "id": self.asked, "method": method, "params": params });
        if !session.is_empty() {
            question["sessionId"] = json!(session);
        }
        self.socket
            .send(Message::text(question.to_string()))
            .unwrap();
        loop {
            let message = self
                .socket
                .read()
                .unwrap_or_else(|error| panic!("no answer to {method}: {error}"));
            let Message::Text(text) = message else {
                continue;
            };
            let mut heard: Value = serde_json::from_str(&text).unwrap();
            if heard["id"] == json!(self.asked) {
                assert!(heard["error"].is_null(), "{method}: {}", heard["error"]);
                return heard["result"].take();
            }
            self.hear(&heard);
        }
    }

    fn hear(&mut self, event: &Value) {
        let params = &event["params"];
        let complaint = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => &params["exceptionDetails"],
            Some("Runtime.consoleAPICalled") if params["type"] == "error" => &params["args"],
            // Breaches of the content security policy and files that are missing come here.
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => &params["entry"],
            _ => return,
        };
        self.complaints.push(complaint.to_string());
    }
}

impl Page {
    fn ask(&self, method: &str, params: Value) -> Value {
        self.line.borrow_mut().ask(&self.session, method, params)
    }

    /// Everything that was complained about so far.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.eval("0");
        self.line.borrow().complaints.clone()
    }

    /// The value of a JavaScript expression; a promise is waited for.
    pub(crate) fn eval(&self, expression: &str) -> Value {
        let answer = self.ask(
            "Runtime.evaluate",
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true }),
        );
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}\n{}",
            answer["exceptionDetails"]
        );
        answer["result"]["value"].clone()
    }

    /// A value that is text.
    pub(crate) fn text(&self, expression: &str) -> String {
        let value = self.eval(expression);
        let text = value
            .as_str()
            .unwrap_or_else(|| panic!("{expression} is {value}"));
        text.to_owned()
    }

    /// A value that is a number.
    pub(crate) fn number(&self, expression: &str) -> f64 {
        let value = self.eval(expression);
        value
            .as_f64()
            .unwrap_or_else(|| panic!("{expression} is {value}"))
    }

    /// Waits until a condition holds in the page, which looks at it again and again by itself.
    pub(crate) fn wait(&self, what: &str, condition: &str) {
        let look = format!(
            "new Promise((tell) => {{
                const end = performance.now() + {CONDITION_MS_MAX};
                const look = () => {{
                    let holds = false;
                    try {{ holds = Boolean({condition}); }} catch {{ /* not yet */ }}
                    if (holds || performance.now() > end) tell(holds);
                    else setTimeout(look, 10);
                }};
                look();
            }})"
        );
        if self.eval(&look) != json!(true) {
            self.screenshot("failed");
            let seen = self.eval("document.body.innerText.slice(0, 3000)");
            panic!(
                "never: {what}\n{condition}\ncomplaints: {:?}\nthe page: {}",
                self.line.borrow().complaints,
                seen.as_str().unwrap_or_default()
            );
        }
    }

    /// Clicks the middle of an element, as a mouse does.
    pub(crate) fn click(&self, selector: &str) {
        self.wait(
            &format!("{selector} can be clicked"),
            &format!(
                "(() => {{ const node = document.querySelector({selector:?}); return node && !node.disabled && \
                 node.getClientRects().length; }})()"
            ),
        );
        let place = self.eval(&format!(
            "(() => {{ const node = document.querySelector({selector:?});
                node.scrollIntoView({{ block: 'center', behavior: 'instant' }});
                const box = node.getBoundingClientRect();
                return {{ x: box.x + box.width / 2, y: box.y + box.height / 2 }}; }})()"
        ));
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            self.ask(
                "Input.dispatchMouseEvent",
                json!({ "type": kind, "x": place["x"], "y": place["y"], "button": "left", "clickCount": 1 }),
            );
        }
    }

    /// Draws a line over an element with the mouse, between two places given as shares of its sides.
    pub(crate) fn drag(&self, selector: &str, from: (f64, f64), to: (f64, f64)) {
        let place = self.eval(&format!(
            "(() => {{ const box = document.querySelector({selector:?}).getBoundingClientRect();
                return [box.x, box.y, box.width, box.height]; }})()"
        ));
        let at = |number: usize| place[number].as_f64().unwrap();
        let steps = [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| {
            let x = from.0 + (to.0 - from.0) * share;
            let y = from.1 + (to.1 - from.1) * share;
            (at(0) + x * at(2), at(1) + y * at(3))
        });
        let send = |kind: &str, (x, y): (f64, f64), buttons: u32| {
            self.ask(
                "Input.dispatchMouseEvent",
                json!({ "type": kind, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1 }),
            );
        };
        send("mouseMoved", steps[0], 0);
        send("mousePressed", steps[0], 1);
        steps.iter().for_each(|&step| send("mouseMoved", step, 1));
        send("mouseReleased", steps[4], 0);
    }

    /// Writes into a field as a person does: clicks, again where the page moved under the hand, and types.
    pub(crate) fn fill(&self, selector: &str, text: &str) {
        let focused = format!("document.activeElement === document.querySelector({selector:?})");
        for _ in 0..20 {
            self.click(selector);
            if self.eval(&focused) == json!(true) {
                break;
            }
        }
        self.wait(&format!("{selector} has the focus"), &focused);
        self.write(text);
    }

    /// Writes into what has the focus.
    pub(crate) fn write(&self, text: &str) {
        self.ask("Input.insertText", json!({ "text": text }));
    }

    /// Presses and lets go a key, by the name in `KeyboardEvent.key`.
    pub(crate) fn press(&self, key: &str, modifiers: u32) {
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "ArrowLeft" => 37,
            "ArrowRight" => 39,
            "Tab" => 9,
            _ => 0,
        };
        let text = match key {
            // What sends a form.
            "Enter" if modifiers == 0 => "\r",
            key if key.len() == 1 && modifiers == 0 => key,
            _ => "",
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "modifiers": modifiers, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = json!(text);
            }
            self.ask("Input.dispatchKeyEvent", event);
        }
    }

    /// Chooses from a list, as its `change` event tells the page.
    pub(crate) fn choose(&self, selector: &str, value: &str) {
        self.eval(&format!(
            "(() => {{ const list = document.querySelector({selector:?}); list.value = {value:?};
                list.dispatchEvent(new Event('change', {{ bubbles: true }})); }})()"
        ));
    }

    /// Drags a file in from outside and lets it go over the middle of the page.
    pub(crate) fn drop_file(&self, file: &Path) {
        let data =
            json!({ "items": [], "files": [file.to_str().unwrap()], "dragOperationsMask": 1 });
        for kind in ["dragEnter", "dragOver", "drop"] {
            self.ask(
                "Input.dispatchDragEvent",
                json!({ "type": kind, "x": 200, "y": 200, "data": data }),
            );
        }
    }

    /// Another size of the window.
    pub(crate) fn resize(&self, width: u32, height: u32) {
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false }),
        );
    }

    /// Light or dark, as the system would say.
    pub(crate) fn prefer(&self, scheme: &str) {
        self.ask(
            "Emulation.setEmulatedMedia",
            json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] }),
        );
    }

    /// Writes what is seen to the folder for pictures, where there is one.
    pub(crate) fn screenshot(&self, name: &str) {
        let Some(folder) = std::env::var_os("LOWTIDE_SCREENSHOTS").map(PathBuf::from) else {
            return;
        };
        let shot = self.ask("Page.captureScreenshot", json!({ "format": "png" }));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(format!("{name}.png"));
        std::fs::write(file, base64(shot["data"].as_str().unwrap())).unwrap();
    }
}

/// What a browser wrote in base 64.
pub(crate) fn base64(text: &str) -> Vec<u8> {
    let digit = |sign: u8| match sign {
        b'A'..=b'Z' => sign - b'A',
        b'a'..=b'z' => sign - b'a' + 26,
        b'0'..=b'9' => sign - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        other => panic!("{other} in base 64"),
    };
    let signs: Vec<u8> = text.bytes().filter(|sign| *sign != b'=').collect();
    let group = |four: &[u8]| {
        let bits = four
            .iter()
            .fold(0_u32, |bits, sign| bits << 6 | u32::from(digit(*sign)));
        let bits = bits << (6 * (4 - four.len()));
        bits.to_be_bytes()[1..four.len()].to_vec()
    };
    signs.chunks(4).flat_map(group).collect()
}
