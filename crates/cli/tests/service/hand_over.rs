//! `generate` through a running server: the same command, the same picture.

use crate::{Place, Server};
use std::path::{Path, PathBuf};

const QUICK: &str = "generate heart --steps 2 --seed 5";

#[test]
fn a_picture_is_the_same_to_the_byte() {
    let place = Place::new();
    let server = Server::start(&place, "");
    for (ending, more) in [
        ("png", ""),
        ("webp", "--guidance 3 --negative dark"),
        ("jpg", "--count 2"),
    ] {
        let there = place.run(&format!("{QUICK} {more} -o there.{ending}"));
        let said = String::from_utf8_lossy(&there.stderr).into_owned();
        assert!(
            there.status.success() && said.contains(&server.url),
            "{said}"
        );
        place.ok(&format!("{QUICK} {more} -o here.{ending} --local"));
        for number in if ending == "jpg" {
            ["-1", "-2"]
        } else {
            ["", ""]
        } {
            let read = |name: &str| {
                std::fs::read(place.path(&format!("{name}{number}.{ending}"))).unwrap()
            };
            assert!(read("here") == read("there"), "{ending}{number} differs");
        }
    }
    server.stop();
}

#[test]
fn a_picture_to_begin_from_is_sent_and_gives_the_same_bytes() {
    let place = Place::new();
    let server = Server::start(&place, "");
    place.ok(&format!("{QUICK} -o cat.png --local"));
    // A mask of which a quarter is bright.
    let mask = image::GrayImage::from_fn(64, 64, |x, y| {
        image::Luma([255 * u8::from(x < 32 && y < 32)])
    });
    mask.save(place.path("mask.png")).unwrap();
    let from = "generate star --steps 4 --seed 6 --image cat.png";
    for (number, more) in [
        "--strength 0.5",
        "--mask mask.png --strength 0.75 --mask-blur 2",
        "--mask mask.png --inpaint-area masked --inpaint-padding 8",
        "--hires-scale 1.5 --hires-steps 2 --hires-upscaler lanczos",
    ]
    .into_iter()
    .enumerate()
    {
        place.ok(&format!("{from} {more} -o there.png"));
        place.ok(&format!("{from} {more} -o here.png --local"));
        let read = |name: &str| std::fs::read(place.path(name)).unwrap();
        assert!(read("here.png") == read("there.png"), "{more} differs");
        let pixels = image::open(place.path("here.png")).unwrap().into_rgb8();
        let cat = image::open(place.path("cat.png")).unwrap().into_rgb8();
        if number == 1 {
            let corner = (cat.width() - 1, cat.height() - 1);
            assert_eq!(
                pixels.get_pixel(corner.0, corner.1),
                cat.get_pixel(corner.0, corner.1)
            );
            assert_ne!(pixels.as_raw(), cat.as_raw());
        }
    }
    // A result to go on from, by its name at the server; nothing long is in the record.
    let jobs = server.get("/v1/jobs?limit=1");
    let job = server.get(&format!(
        "/v1/jobs/{}",
        jobs["jobs"][0]["id"].as_str().unwrap()
    ));
    assert!(
        job["request"]["image"]
            .as_str()
            .unwrap()
            .starts_with("sha256:"),
        "{job}"
    );
    let artifact = job["artifacts"][0]["id"].as_str().unwrap();
    place.ok(&format!(
        "generate star --steps 4 --image artifact:{artifact} -o on.png"
    ));
    for (line, says) in [
        ("--image artifact:1", "artifact"),
        ("--image notes.txt", "notes.txt"),
        ("--image cat.png --strength 0.01", "strength"),
        ("--lora ink", "ink"),
    ] {
        place.refused(
            &format!("generate star {line} --priority normal"),
            2,
            &[says],
        );
    }
    server.stop();
}

#[test]
fn what_only_this_process_can_do_is_done_here() {
    let place = Place::new();
    let server = Server::start(&place, "");
    for option in [
        "--budget 64MiB",
        "--threads 1",
        "--precision f32",
        "--dump d.safetensors",
    ] {
        let output = place.run(&format!("{QUICK} {option} -o here.png"));
        let said = String::from_utf8_lossy(&output.stderr);
        let name = option.split(' ').next().unwrap();
        assert!(output.status.success(), "{said}");
        assert!(said.contains("runs here") && said.contains(name), "{said}");
    }
    let jobs = server.get("/v1/jobs");
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 0, "{jobs}");
    place.refused(
        &format!("{QUICK} --budget 64MiB --priority urgent"),
        2,
        &["--budget", "leave --priority out"],
    );
    server.stop();
}

#[test]
fn nobody_has_to_wait() {
    let place = Place::new();
    let server = Server::start(&place, "");
    let id = place.ok(&format!("{QUICK} --no-wait --priority batch"));
    let job = server.over(id.trim());
    assert_eq!(
        (job["state"].as_str(), job["priority"].as_str()),
        (Some("done"), Some("batch"))
    );
    server.stop();
}

#[test]
fn a_server_that_is_asked_for_has_to_be_there() {
    let place = Place::new();
    let nobody = "http://127.0.0.1:9";
    place.refused(
        &format!("{QUICK} --server {nobody}"),
        1,
        &[nobody, "lowtide serve"],
    );
    place.refused(
        &format!("{QUICK} --priority urgent"),
        2,
        &["lowtide serve", "--priority"],
    );
    place.refused(
        &format!("{QUICK} --server box:80"),
        2,
        &["box:80", "http://"],
    );
    place.refused(
        &format!("{QUICK} --local --server {nobody}"),
        2,
        &["--local"],
    );
    assert!(!place.path("data").exists(), "asking leaves nothing behind");
}

#[test]
fn what_does_not_fit_the_server_is_refused_with_the_numbers() {
    let place = Place::new();
    let server = Server::start(&place, "--budget 1MiB");
    place.refused(&format!("{QUICK} -o heart.png"), 3, &["1.0 MiB"]);
    assert!(!place.path("heart.png").exists());
    server.stop();
}

#[test]
fn a_model_in_the_hubs_cache_is_one_of_the_servers() {
    let place = Place::new();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = place.path(".cache/huggingface/hub/models--org--name");
    copy(&demo_folder(), &repo.join("snapshots").join(commit));
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), commit).unwrap();
    let server = Server::start(&place, "");
    let list = server.get("/v1/models").to_string();
    assert!(list.contains("\"org/name\""), "{list}");
    let output = place.run(&format!("{QUICK} --model org/name -o there.png"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("handed over"),
        "{said}"
    );
    place.ok("models offload org/name");
    let output = place.run(&format!("{QUICK} --model org/other --no-wait"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("'org/other'"),
        "{said}"
    );
    server.stop();
}

fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}
