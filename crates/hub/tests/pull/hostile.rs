//! Servers that mean no good.

use super::*;
use serde_json::json;

/// Adds a file to the description that is not there otherwise.
fn with_file(place: &Place, path: &str) {
    let mut description = place.hub.description();
    let files = description["siblings"].as_array_mut().unwrap();
    files.push(json!({ "rfilename": path, "size": 3, "blobId": server::sum(b"abc", false) }));
    place.hub.set_listing(description.to_string());
}

#[test]
fn paths_that_lead_elsewhere_are_refused_before_anything_is_fetched() {
    for path in [
        "unet/../../../../evil",
        "unet/..\\..\\evil",
        "unet/nul",
        "unet/a:b",
        "unet//x",
        "unet/CONFIG.JSON",
        "unet/\u{7}",
    ] {
        let place = Place::new();
        with_file(&place, path);
        let error = place.pull().unwrap_err();
        assert!(
            error.to_string().contains("which is refused"),
            "{path}: {error}"
        );
        place.assert_no_model();
        assert!(!place.hub.asked().iter().any(|one| one.storage));
    }
    let place = Place::new();
    let all = Choice {
        variant: None,
        include: vec!["*".to_owned()],
    };
    with_file(&place, "/etc/evil");
    assert!(place.pull_as("org/name", all).is_err());
    // One that nobody wants harms nobody.
    assert!(place.pull().is_ok());
}

#[test]
fn descriptions_that_are_none() {
    for text in [
        "not JSON".to_owned(),
        json!({ "sha": "../../etc", "siblings": [] }).to_string(),
        json!({ "sha": server::COMMIT, "siblings": [{ "rfilename": "x", "size": u64::MAX }] })
            .to_string(),
        format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!(
            "{{\"sha\": \"{}\", \"pad\": \"{}\"}}",
            server::COMMIT,
            "x".repeat(33 << 20)
        ),
    ] {
        let place = Place::new();
        place.hub.set_listing(text);
        let error = place.pull().unwrap_err();
        assert!(
            matches!(error, Error::NotAHub { .. } | Error::TooMuch { .. }),
            "{error}"
        );
        assert!(!place.repo().exists());
    }
    let place = Place::new();
    let sibling = |number: usize| json!({ "rfilename": format!("f{number}") });
    let many: Vec<_> = (0..50_001).map(sibling).collect();
    place
        .hub
        .set_listing(json!({ "sha": server::COMMIT, "siblings": many }).to_string());
    assert!(matches!(place.pull().unwrap_err(), Error::TooMuch { .. }));
}

#[test]
fn a_commit_that_is_another_is_not_taken() {
    let place = Place::new();
    let other = "d".repeat(40);
    let exact = place.pull_as(&format!("org/name@{}", server::COMMIT), Choice::default());
    assert!(exact.is_ok());
    let mut description = place.hub.description();
    description["sha"] = json!(other);
    place.hub.set_listing(description.to_string());
    let exact = place.pull_as(&format!("org/name@{}", server::COMMIT), Choice::default());
    assert!(matches!(exact.unwrap_err(), Error::NotAHub { .. }));

    let place = Place::new();
    let wrong = vec![("x-repo-commit", other)];
    place.hub.fault("unet/config.json", Fault::Headers(wrong));
    let error = place.pull().unwrap_err();
    assert!(error.to_string().contains("and gives dddd"), "{error}");
}

#[test]
fn heads_that_lie_about_a_file() {
    let sum = "e".repeat(64);
    for (path, name, value) in [
        (WEIGHTS, "x-linked-size", "12".to_owned()),
        (WEIGHTS, "x-linked-size", u64::MAX.to_string()),
        (WEIGHTS, "x-linked-etag", format!("\"{sum}\"")),
        (WEIGHTS, "x-linked-etag", "\"../../evil\"".to_owned()),
        (WEIGHTS, "x-linked-etag", "nul".to_owned()),
        ("unet/config.json", "etag", "\"a/b\"".to_owned()),
        ("unet/config.json", "etag", String::new()),
    ] {
        let place = Place::new();
        place
            .hub
            .fault(path, Fault::Headers(vec![(name, value.clone())]));
        let error = place.pull().unwrap_err();
        let known = matches!(
            error,
            Error::NotAHub { .. } | Error::Damaged { .. } | Error::TooMuch { .. }
        );
        assert!(known, "{name} {value}: {error}");
        place.assert_no_model();
    }
}

#[test]
fn a_file_without_any_sum_is_not_taken() {
    let place = Place::new();
    let mut description = place.hub.description();
    for file in description["siblings"].as_array_mut().unwrap() {
        file.as_object_mut().unwrap().remove("blobId");
    }
    place.hub.set_listing(description.to_string());
    let named = vec![("etag", "\"abc-1\"".to_owned())];
    place.hub.fault("unet/config.json", Fault::Headers(named));
    let error = place.pull().unwrap_err();
    assert!(
        matches!(&error, Error::NoChecksum { file, .. } if file == "unet/config.json"),
        "{error}"
    );
}

#[test]
fn a_mirror_with_names_of_its_own_is_taken_by_the_sums_of_the_description() {
    let place = Place::new();
    let named = vec![("etag", "W/\"abc-1\"".to_owned())];
    place.hub.fault("unet/config.json", Fault::Headers(named));
    place.pull().unwrap();
    assert!(place.repo().join("blobs/abc-1").exists());
    place
        .hub
        .fault("scheduler/scheduler_config.json", Fault::Wrong);
    place.assert_whole();
}

#[test]
fn redirects_without_end_and_to_other_schemes() {
    for location in ["file:///etc/passwd", "gopher://x/", "nowhere", ""] {
        let place = Place::new();
        let headers = vec![("location", location.to_owned())];
        place
            .hub
            .fault("unet/config.json", Fault::Status(302, headers, 99));
        let error = place.pull().unwrap_err();
        assert!(matches!(error, Error::NotAHub { .. }), "{error}");
    }
    let place = Place::new();
    let own = format!("/org/name/resolve/{}/unet/config.json", server::COMMIT);
    place.hub.fault(
        "unet/config.json",
        Fault::Status(307, vec![("location", own)], 99),
    );
    let error = place.pull().unwrap_err();
    assert!(error.to_string().contains("without end"), "{error}");
}

#[test]
fn a_range_that_is_another_is_not_taken() {
    let place = Place::new();
    std::fs::create_dir_all(place.repo().join("blobs")).unwrap();
    std::fs::write(place.incomplete(WEIGHTS), &model()[WEIGHTS].bytes[..10]).unwrap();
    let wrong = vec![("content-range", "bytes 0-5/3000000".to_owned())];
    place
        .hub
        .fault(&format!("storage/{WEIGHTS}"), Fault::Status(206, wrong, 99));
    let error = place.pull().unwrap_err();
    assert!(error.to_string().contains("another range"), "{error}");
}
