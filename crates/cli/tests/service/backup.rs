//! A queue and its files copied while they are in use, and brought back into an empty place.

use serde_json::json;

use crate::{Place, Server};

/// Jobs before and while the copy is made.
const JOBS: usize = 30;

#[test]
fn what_was_copied_while_jobs_ran_is_whole_elsewhere() {
    let place = Place::new();
    let server = Server::start(&place, "--set worker.checkpoint_every=20ms");
    let picture = std::fs::read(picture_of(&place)).unwrap();
    let mut sent = ureq::post(format!("{}/v1/inputs", server.url))
        .header("content-type", "image/png")
        .send(&picture[..])
        .unwrap();
    let input: serde_json::Value = sent.body_mut().read_json().unwrap();
    let input = input["input"].as_str().unwrap();
    let submit = |number: usize| {
        let request = json!({ "seed": number, "strips": 6, "step_ms": 5 });
        let job = server.post("/v1/jobs", json!({ "kind": "noise", "request": request }));
        job["id"].as_str().unwrap().to_owned()
    };
    let mut jobs: Vec<String> = (0..JOBS / 2).map(submit).collect();
    let first = server.over(&jobs[0]);
    assert_eq!(first["state"], "done", "{first}");
    let mut copying = place.command("backup copy").spawn().unwrap();
    jobs.extend((JOBS / 2..JOBS).map(submit));
    assert!(copying.wait().unwrap().success());
    place.refused("backup copy", 2, &["copy", "is there already"]);
    let expected: Vec<_> = jobs.iter().map(|id| content(&server, id)).collect();
    server.stop();

    // Into the place where everything is still there: nothing is written over.
    place.refused("restore copy", 2, &["lowtide.db", "--data-dir"]);
    place.ok("restore copy --data-dir new");
    let server = Server::start(&place, "--data-dir new");
    let known = server.get("/v1/jobs?limit=100")["jobs"]
        .as_array()
        .unwrap()
        .len();
    assert!(
        (JOBS / 2..=JOBS).contains(&known),
        "{known} jobs are in the copy"
    );
    // Whatever is in the copy is done or goes on, to the same bytes.
    let mut compared = 0;
    for (id, expected) in jobs.iter().zip(&expected) {
        if ureq::get(format!("{}/v1/jobs/{id}", server.url))
            .call()
            .is_ok()
        {
            assert!(content(&server, id) == *expected, "the picture of {id}");
            compared += 1;
        }
    }
    assert_eq!(compared, known);
    let mut answer = ureq::get(format!("{}/v1/inputs/{input}", server.url))
        .call()
        .unwrap();
    assert!(answer.body_mut().read_to_vec().unwrap() == picture);
    server.stop();
}

#[test]
fn what_is_no_whole_copy_is_not_brought_back() {
    let place = Place::new();
    let server = Server::start(&place, "");
    let job = server.post(
        "/v1/jobs",
        json!({ "kind": "noise", "request": { "seed": 1 } }),
    );
    let job = server.over(job["id"].as_str().unwrap());
    place.refused(
        "restore nothing --data-dir new",
        2,
        &["nothing", "backup.json"],
    );
    place.ok("backup copy");
    let data = place.path("data/lowtide").display().to_string();
    place.refused(
        &format!("restore copy --data-dir {data}"),
        2,
        &[&server.url, "stop it"],
    );
    server.stop();
    let artifact = job["artifacts"][0]["id"].as_str().unwrap();
    let file = place.path("copy/artifacts").join(artifact);
    std::fs::write(&file, "damaged").unwrap();
    place.refused(
        "restore copy --data-dir new",
        1,
        &["the copy lacks a file of job", artifact],
    );
    std::fs::remove_file(&file).unwrap();
    place.refused("restore copy --data-dir new", 1, &[artifact, "no file"]);
    assert!(!place.path("new/lowtide.db").exists());
    let redis = "--store redis://:secret@127.0.0.1:1";
    place.refused(&format!("backup other {redis}"), 2, &["docs/operations.md"]);
    place.refused("backup other --store none.db", 2, &["none.db"]);
}

fn content(server: &Server, id: &str) -> Vec<u8> {
    let job = server.over(id);
    assert_eq!(job["state"], "done", "{job}");
    let artifact = job["artifacts"][0]["id"].as_str().unwrap();
    let mut answer = ureq::get(format!("{}/v1/artifacts/{artifact}", server.url))
        .call()
        .unwrap();
    answer.body_mut().read_to_vec().unwrap()
}

/// A small picture.
fn picture_of(place: &Place) -> std::path::PathBuf {
    let path = place.path("picture.png");
    image::RgbImage::from_pixel(8, 8, image::Rgb([1, 2, 3]))
        .save(&path)
        .unwrap();
    path
}
