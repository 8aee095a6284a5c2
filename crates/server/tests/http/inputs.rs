//! Pictures that jobs begin from: sent, named, kept, forgotten; and as OpenAI's clients send them.

use std::time::{Duration, Instant};

use lowtide_core::Bytes;
use lowtide_jobs::{InputId, Policy, Retention};
use lowtide_server::Options;
use serde_json::{Value, json};

use super::pretend::{Knobs, MASK, PNG};
use super::server::{Answer, PATIENCE, World};

const JPEG: &[u8] = b"\xff\xd8\xff\xe0 a picture of which only the beginning is looked at";

pub(crate) fn base64(bytes: &[u8]) -> String {
    const SIGNS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group
            .iter()
            .fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte));
        let bits = bits << (8 * (3 - group.len()));
        for sign in 0..4 {
            let digit = bits >> (18 - 6 * sign) & 63;
            text.push(match sign > group.len() {
                true => '=',
                false => char::from(SIGNS[digit as usize]),
            });
        }
    }
    text
}

fn data_url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64(bytes))
}

pub(crate) fn send(world: &World, path: &str, content_type: &str, body: &[u8]) -> Answer {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: {content_type}\r\n\
         content-length: {}\r\n\r\n",
        world.address,
        body.len()
    );
    world.raw(&[head.as_bytes(), body].concat())
}

fn name_of(content: &[u8]) -> String {
    InputId::of(content).to_string()
}

#[test]
fn a_picture_is_sent_once_and_can_be_had_again() {
    let world = World::idle();
    let name = name_of(PNG);
    for _ in 0..2 {
        let answer = send(&world, "/v1/inputs", "image/png", PNG);
        assert_eq!(answer.status, 201, "{answer:?}");
        let told = json!({ "input": name, "media_type": "image/png", "bytes": PNG.len() });
        assert_eq!(answer.json(), told);
        assert_eq!(
            answer.header("location"),
            Some(&format!("/v1/inputs/{name}")[..])
        );
    }
    let got = world.get(&format!("/v1/inputs/{name}"));
    assert_eq!((got.status, &got.body[..]), (200, PNG));
    assert_eq!(got.header("content-type"), Some("image/png"));
    // What it is counts, not what it is called.
    let answer = send(&world, "/v1/inputs", "image/png", JPEG).json();
    assert_eq!(answer["media_type"], "image/jpeg");
}

#[test]
fn what_is_no_picture_or_no_name_is_refused() {
    let options = Options {
        input_max: Bytes(1_000),
        ..Options::default()
    };
    let world = World::with(options, Policy::default(), None);
    let refused = |answer: Answer| (answer.status, answer.code());
    let post = |content_type, body: &[u8]| refused(send(&world, "/v1/inputs", content_type, body));
    assert_eq!(
        post("application/json", PNG),
        (415, "unsupported_media_type".to_owned())
    );
    let invalid = (422, "invalid_request".to_owned());
    assert_eq!(post("image/png", b""), invalid);
    assert_eq!(post("image/webp", b"<svg onload=\"alert(1)\"/>"), invalid);
    assert_eq!(post("image/png", &PNG[..7]), invalid);
    let long = [PNG, &[0; 1_000]].concat();
    assert_eq!(post("image/png", &long), (413, "too_large".to_owned()));
    for name in [
        name_of(b"never sent"),
        "sha256:..%2f..%2f..%2fetc%2fpasswd".to_owned(),
        name_of(PNG).to_uppercase(),
        "..%2f..%2fjobs.sqlite".to_owned(),
        "%00".to_owned(),
    ] {
        let answer = world.get(&format!("/v1/inputs/{name}"));
        assert_eq!((answer.status, &answer.code()[..]), (404, "not_found"));
    }
}

#[test]
fn a_job_names_what_was_sent_a_result_or_brings_it_along() {
    let world = World::new();
    send(&world, "/v1/inputs", "image/jpeg", JPEG);
    let request = |image: &str| json!({ "request": { "prompt": "a", "image": image } });
    let recorded = |more: &Value| {
        let id = world.submit(more);
        let job = world.until(&id, "done");
        (job["request"].clone(), job["artifacts"][0]["id"].clone())
    };
    let (told, artifact) = recorded(&request(&name_of(JPEG)));
    assert_eq!(told["image"], name_of(JPEG));
    // A result is an input from then on, whatever becomes of its job.
    let artifact = format!("artifact:{}", artifact.as_str().unwrap());
    assert_eq!(recorded(&request(&artifact)).0["image"], name_of(PNG));
    assert_eq!(world.get(&format!("/v1/inputs/{}", name_of(PNG))).body, PNG);
    // Nothing long is in the record.
    let long = [JPEG, &[7; 300_000]].concat();
    let both =
        json!({ "request": { "prompt": "a", "image": data_url(&long), "mask": data_url(PNG) } });
    assert!(both.to_string().len() > 400_000);
    let (told, _) = recorded(&both);
    assert_eq!(told["image"], name_of(&long));
    assert_eq!(told["mask"], name_of(PNG));
    let plan = world.post("/v1/plan", &both);
    assert_eq!(plan.json()["request"]["image"], name_of(&long), "{plan:?}");
}

#[test]
fn a_name_of_nothing_is_refused_with_its_field() {
    let options = Options {
        input_max: Bytes(100_000),
        ..Options::default()
    };
    let world = World::with(options, Policy::default(), None);
    let missing = name_of(b"never sent");
    for (image, says) in [
        (&missing[..], "there is no input sha256:"),
        (
            "artifact:00000000000000000000000000",
            "there is no artifact",
        ),
        ("artifact:../../x", "no artifact's id"),
        ("../../etc/passwd", "POST /v1/inputs"),
        ("/etc/passwd", "POST /v1/inputs"),
        ("http://127.0.0.1/x.png", "POST /v1/inputs"),
        ("file:///etc/passwd", "POST /v1/inputs"),
        ("", "POST /v1/inputs"),
        ("data:image/png;base64", "POST /v1/inputs"),
        ("data:text/html;base64,AAAA", "POST /v1/inputs"),
        ("data:image/png;base64,A", "no base64"),
        ("data:image/png;base64,AAAA", "no PNG"),
        (&data_url(&[PNG, &[0; 120_000]].concat()), "100000"),
    ] {
        for path in ["/v1/jobs", "/v1/plan"] {
            let body = json!({ "request": { "prompt": "a", "image": image } });
            let answer = world.post(path, &body);
            let error = answer.json()["error"].clone();
            assert_eq!((answer.status, &error["field"]), (422, &json!("image")));
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(says), "{image}: {message}");
        }
    }
    let list = json!({ "jobs": [
        { "request": { "prompt": "a" } },
        { "request": { "prompt": "a", "mask": missing } },
    ] });
    let answer = world.post("/v1/jobs", &list);
    assert_eq!(answer.json()["error"]["field"], "jobs[1].mask");
}

#[test]
fn what_no_job_names_goes_and_what_one_names_stays_as_long_as_the_job() {
    let options = Options {
        // As long as it may take from storing what came with a job until the job is there.
        input_grace: Duration::from_secs(1),
        retention: Some(Retention {
            jobs_max: Some(0),
            ..Retention::default()
        }),
        retain_every: Duration::from_millis(10),
        ..Options::default()
    };
    let world = World::with(options, Policy::default(), Some(Knobs::default()));
    let worker = world.worker.as_ref().unwrap();
    let stuck = &worker.knobs.stuck;
    stuck.store(true, std::sync::atomic::Ordering::SeqCst);
    let named = json!({ "request": { "prompt": "a", "image": data_url(JPEG) } });
    let id = world.submit(&named);
    let there = |content: &[u8]| {
        world
            .get(&format!("/v1/inputs/{}", name_of(content)))
            .status
    };
    let gone = |content: &[u8]| {
        let began = Instant::now();
        while there(content) != 404 {
            assert!(began.elapsed() < PATIENCE, "it stays");
            std::thread::yield_now();
        }
    };
    send(&world, "/v1/inputs", "image/png", PNG);
    gone(PNG);
    assert_eq!(there(JPEG), 200, "a job waits for it");
    stuck.store(false, std::sync::atomic::Ordering::SeqCst);
    world.store.nudge();
    // Over, forgotten, and with it what it began from.
    gone(JPEG);
    assert_eq!(world.get(&format!("/v1/jobs/{id}")).status, 404);
}

/// A form as clients write it.
fn form(parts: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file, content) in parts {
        body.extend(
            format!("--frontier\r\nContent-Disposition: form-data; name=\"{name}\"").bytes(),
        );
        if let Some(file) = file {
            body.extend(format!("; filename=\"{file}\"\r\nContent-Type: image/png").bytes());
        }
        body.extend(b"\r\n\r\n");
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--frontier--\r\n");
    body
}

const FORM: &str = "multipart/form-data; boundary=frontier";

/// The request of the newest job.
fn newest(world: &World) -> Value {
    let jobs = world.get("/v1/jobs?limit=1").json();
    let id = jobs["jobs"][0]["id"].as_str().unwrap().to_owned();
    world.get(&format!("/v1/jobs/{id}")).json()["request"].clone()
}

#[test]
fn pictures_are_changed_as_openai_has_it() {
    let world = World::new();
    let edit = |parts: &[(&str, Option<&str>, &[u8])]| {
        send(&world, "/v1/images/edits", FORM, &form(parts))
    };
    let prompt = ("prompt", None, &b"a cat"[..]);
    let answer = edit(&[
        ("image", Some("a.jpg"), JPEG),
        ("mask", Some("m.png"), PNG),
        prompt,
        ("n", None, b"2"),
        ("size", None, b"64x64"),
        ("response_format", None, b"b64_json"),
        ("input_fidelity", None, b"high"),
    ]);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["data"].as_array().unwrap().len(), 2);
    let request = newest(&world);
    assert_eq!(request["image"], name_of(JPEG));
    // What can be seen through becomes what is bright.
    assert_eq!(request["mask"], name_of(MASK));
    assert_eq!(request["strength"], 1.0);
    assert_eq!(
        (&request["width"], &request["count"]),
        (&json!(64), &json!(2))
    );

    // Newer clients write `image[]`; without a mask the picture's own counts, if it has one.
    let strength = ("strength", None, &b"0.4"[..]);
    assert_eq!(
        edit(&[("image[]", Some("a"), PNG), prompt, strength]).status,
        200
    );
    let request = newest(&world);
    assert_eq!(
        (&request["mask"], &request["strength"]),
        (&json!(name_of(MASK)), &json!(0.4))
    );
    assert_eq!(edit(&[("image", Some("a"), JPEG), prompt]).status, 200);
    let request = newest(&world);
    assert!(request["mask"].is_null() && request["strength"].is_null());

    let json =
        json!({ "prompt": "a", "image": data_url(JPEG), "mask": { "image_url": data_url(PNG) } });
    let answer = world.post("/v1/images/edits", &json);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(newest(&world)["mask"], name_of(MASK));
}

#[test]
fn wrong_edits_are_told_apart() {
    let world = World::idle();
    let prompt = ("prompt", None, &b"a"[..]);
    let image = ("image", Some("a"), JPEG);
    for (parts, param) in [
        (vec![prompt], "image"),
        (vec![image], "prompt"),
        (vec![image, image, prompt], "image"),
        (vec![image, prompt, prompt], "prompt"),
        (vec![("image", Some("a"), b"GIF89a"), prompt], "image"),
        (vec![image, ("mask", Some("m"), JPEG), prompt], "mask"),
        (vec![image, ("mask", Some("m"), b"x"), prompt], "mask"),
        (vec![image, prompt, ("n", None, b"many")], "n"),
        (vec![image, prompt, ("strength", None, b"2")], "strength"),
        (vec![image, prompt, ("size", None, b"big")], "size"),
        (vec![image, prompt, ("styel", None, b"x")], "styel"),
        (vec![image, ("prompt", None, b"\xff\xfe")], "prompt"),
    ] {
        let answer = send(&world, "/v1/images/edits", FORM, &form(&parts));
        let error = answer.json()["error"].clone();
        assert_eq!(
            (answer.status, &error["param"]),
            (400, &json!(param)),
            "{error}"
        );
    }
    for (content_type, body, status) in [
        ("text/plain", &b"x"[..], 415),
        ("multipart/form-data", b"x", 400),
        (FORM, b"no form at all", 400),
        (
            FORM,
            b"--frontier\r\nContent-Disposition: form-data; name=\"image\"\r\n\r\nbroken off",
            400,
        ),
        ("application/json", b"[]", 400),
    ] {
        let answer = send(&world, "/v1/images/edits", content_type, body);
        assert_eq!(answer.status, status, "{content_type} {answer:?}");
    }
    let many: Vec<(String, &[u8])> = (0..100).map(|at| (format!("f{at}"), &b"x"[..])).collect();
    let many: Vec<_> = many
        .iter()
        .map(|(name, text)| (&name[..], None, *text))
        .collect();
    assert_eq!(
        send(&world, "/v1/images/edits", FORM, &form(&many)).status,
        400
    );
}
