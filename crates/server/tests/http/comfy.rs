//! Graphs as ComfyUI's clients send them.

use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Instant;

use lowtide_jobs::{InputId, Policy};
use lowtide_server::Options;
use serde_json::{Value, json};
use tungstenite::WebSocket;

use super::inputs::send;
use super::pretend::{Knobs, PNG};
use super::server::{Answer, PATIENCE, World};

pub(super) fn graph() -> Value {
    json!({
        "3": { "class_type": "KSampler", "inputs": {
            "seed": 5, "steps": 3, "cfg": 7, "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        }},
        "4": { "class_type": "CheckpointLoaderSimple", "inputs": { "ckpt_name": "demo.safetensors" } },
        "5": { "class_type": "EmptyLatentImage", "inputs": { "width": 128, "height": 64, "batch_size": 2 } },
        "6": { "class_type": "CLIPTextEncode", "inputs": { "text": "a red heart", "clip": ["4", 1] } },
        "7": { "class_type": "CLIPTextEncode", "inputs": { "text": "blue", "clip": ["4", 1] } },
        "8": { "class_type": "VAEDecode", "inputs": { "samples": ["3", 0], "vae": ["4", 2] } },
        "9": { "class_type": "SaveImage", "inputs": { "filename_prefix": "x", "images": ["8", 0] } },
    })
}

/// As its clients do it: without saying that it is JSON.
fn submit(world: &World, prompt: &Value) -> Answer {
    let body = json!({ "prompt": prompt, "client_id": "someone" }).to_string();
    let head = format!(
        "POST /prompt HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        world.address,
        body.len()
    );
    world.raw(head.as_bytes())
}

fn open(world: &World) -> WebSocket<TcpStream> {
    let stream = world.connect();
    let address = format!("ws://{}/ws?clientId=someone", world.address);
    tungstenite::client(address, stream).unwrap().0
}

fn next(socket: &mut WebSocket<TcpStream>) -> Value {
    loop {
        match socket.read().unwrap() {
            tungstenite::Message::Text(text) => {
                return serde_json::from_str(text.as_str()).unwrap();
            }
            _ => continue,
        }
    }
}

#[test]
fn a_graph_is_a_job_and_its_news_come_in_order() {
    let world = World::new();
    let mut socket = open(&world);
    let first = next(&mut socket);
    assert_eq!(first["type"], "status");
    assert_eq!(first["data"]["sid"], "someone");
    let answer = submit(&world, &graph());
    assert_eq!(answer.status, 200, "{answer:?}");
    let id = answer.json()["prompt_id"].as_str().unwrap().to_owned();
    let mut news = Vec::new();
    loop {
        let told = next(&mut socket);
        let kind = told["type"].as_str().unwrap().to_owned();
        if kind == "status" {
            continue;
        }
        assert_eq!(told["data"]["prompt_id"], id, "{told}");
        let end = kind == "executing" && told["data"]["node"].is_null();
        news.push(kind);
        if end {
            break;
        }
    }
    news.dedup();
    let expected = [
        "execution_start",
        "execution_cached",
        "executing",
        "progress",
        "executed",
        "execution_success",
        "executing",
    ];
    assert_eq!(news, expected);
    let history = world.get(&format!("/history/{id}")).json();
    let record = &history[&id];
    assert_eq!(record["status"]["completed"], true);
    let images = record["outputs"]["9"]["images"].as_array().unwrap();
    assert_eq!(images.len(), 2);
    let name = images[0]["filename"].as_str().unwrap();
    let file = world.get(&format!("/view?filename={name}&subfolder=&type=output"));
    assert_eq!((file.status, &file.body[..]), (200, PNG));
    assert_eq!(
        world.get("/prompt").json()["exec_info"]["queue_remaining"],
        0
    );
    let forget = world.post("/history", &json!({ "clear": true }));
    assert_eq!(forget.status, 200);
    assert_eq!(world.get("/api/history").json(), json!({}));
    assert_eq!(
        world.get(&format!("/v1/jobs/{id}")).status,
        200,
        "the job stays"
    );
}

#[test]
fn a_client_that_listens_late_is_told_all_the_same() {
    let world = World::new();
    let id = submit(&world, &graph()).json()["prompt_id"]
        .as_str()
        .unwrap()
        .to_owned();
    world.until(&id, "done");
    let mut socket = open(&world);
    loop {
        let told = next(&mut socket);
        if told["type"] == "executing" {
            assert_eq!(told["data"]["prompt_id"], id);
            return;
        }
    }
}

#[test]
fn nodes_that_are_not_understood_are_named() {
    let world = World::idle();
    let mut graph = graph();
    graph["8"]["class_type"] = json!("IPAdapterApply");
    let answer = submit(&world, &graph);
    assert_eq!(answer.status, 400, "{answer:?}");
    let told = answer.json();
    assert_eq!(told["node_errors"]["8"]["class_type"], "IPAdapterApply");
    assert!(
        told["error"]["message"]
            .as_str()
            .unwrap()
            .contains("IPAdapterApply"),
        "{told}"
    );
    let mut unknown = self::graph();
    unknown["4"]["inputs"]["ckpt_name"] = json!("sd_xl.safetensors");
    assert_eq!(submit(&world, &unknown).status, 404);
    for body in ["{", "[]", "{\"prompt\": 3}", "{}"] {
        let answer = world.ask("POST", "/prompt", &[], Some(body));
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
    }
    assert_eq!(
        world.get("/queue").json(),
        json!({ "queue_running": [], "queue_pending": [] })
    );
}

#[test]
fn the_queue_is_seen_and_emptied() {
    let knobs = Knobs::default();
    knobs.stuck.store(true, Ordering::SeqCst);
    let world = World::with(Options::default(), Policy::default(), Some(knobs));
    let first = submit(&world, &graph()).json()["prompt_id"]
        .as_str()
        .unwrap()
        .to_owned();
    world.until(&first, "running");
    let second = submit(&world, &graph()).json()["prompt_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let third = submit(&world, &graph()).json()["prompt_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let queue = world.get("/queue").json();
    assert_eq!(queue["queue_running"][0][1], first);
    assert_eq!(queue["queue_pending"][0][1], second);
    assert_eq!(queue["queue_pending"][1][2], graph());
    assert_eq!(
        world
            .post("/queue", &json!({ "delete": [third, "nonsense"] }))
            .status,
        200
    );
    world.until(&third, "cancelled");
    assert_eq!(world.post("/queue", &json!({ "clear": true })).status, 200);
    world.until(&second, "cancelled");
    assert_eq!(world.ask("POST", "/interrupt", &[], None).status, 200);
    world.until(&first, "cancelled");
    let record = world.get(&format!("/history/{first}")).json();
    assert_eq!(record[&first]["status"]["status_str"], "error");
}

#[test]
fn a_picture_that_was_sent_begins_a_graph() {
    let world = World::new();
    let form = [
        &b"--b\r\ncontent-disposition: form-data; name=\"subfolder\"\r\n\r\nany/../where\r\n"[..],
        b"--b\r\ncontent-disposition: form-data; name=\"image\"; filename=\"../cat.png\"\r\n\r\n",
        PNG,
        b"\r\n--b--\r\n",
    ]
    .concat();
    let sent = send(
        &world,
        "/upload/image",
        "multipart/form-data; boundary=b",
        &form,
    );
    assert_eq!(sent.status, 200, "{sent:?}");
    let name = sent.json()["name"].as_str().unwrap().to_owned();
    assert_eq!(name, format!("{}.png", InputId::of(PNG).digits()));
    let mut graph = graph();
    graph["10"] =
        json!({ "class_type": "LoadImage", "inputs": { "image": format!("default/{name}") } });
    graph["11"] = json!({ "class_type": "VAEEncodeForInpaint", "inputs": { "pixels": ["10", 0], "vae": ["4", 2], "mask": ["10", 1] } });
    graph["3"]["inputs"]["latent_image"] = json!(["11", 0]);
    graph["3"]["inputs"]["denoise"] = json!(0.5);
    let answer = submit(&world, &graph);
    assert_eq!(answer.status, 200, "{answer:?}");
    let id = answer.json()["prompt_id"].as_str().unwrap().to_owned();
    let request = world.until(&id, "done")["request"].clone();
    assert_eq!(request["image"], InputId::of(PNG).to_string());
    assert_eq!(
        (&request["steps"], &request["strength"]),
        (&json!(6), &json!(0.5))
    );
    assert!(request["mask"].as_str().unwrap().starts_with("sha256:"));
    graph["10"]["inputs"]["image"] = json!("../../etc/passwd");
    let answer = submit(&world, &graph);
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(world.get("/view?filename=../../etc/passwd").status, 404);
}

#[test]
fn memory_nodes_and_names() {
    let world = World::new();
    let began = Instant::now();
    while world.get("/system_stats").json()["devices"]
        .as_array()
        .unwrap()
        .is_empty()
    {
        assert!(began.elapsed() < PATIENCE);
    }
    assert!(
        world.get("/system_stats").json()["devices"][0]["vram_total"]
            .as_u64()
            .unwrap()
            > 0
    );
    let nodes = world.get("/object_info").json();
    let names = &nodes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0];
    assert_eq!(*names, json!(["demo"]));
    assert_eq!(world.get("/object_info/Nonsense").json(), json!({}));
    assert_eq!(world.get("/models/loras").json(), json!(["styles/ink"]));
    assert_eq!(
        world
            .post(
                "/free",
                &json!({ "unload_models": true, "free_memory": true })
            )
            .status,
        200
    );
    assert_eq!(world.get("/ws").status, 400);
}
