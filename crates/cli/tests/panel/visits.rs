//! What people do with the panel.

use crate::cdp::CTRL;
use crate::{Page, Visit};

const HEART: &str = "a red heart on a yellow background";

fn make(page: &Page, prompt: &str) {
    page.click("#make-prompt");
    page.eval("document.querySelector('#make-prompt').select()");
    page.write(prompt);
    page.press("Enter", CTRL);
}

fn is_done(page: &Page) {
    page.wait(
        "the picture is there",
        "document.querySelector('#stage').dataset.state === 'done' && \
         document.querySelector('#stage-view .picture img').naturalWidth > 0",
    );
}

/// Notes what the stage shows from now on: how far it was, and whether an unfinished picture was seen.
fn watch(page: &Page) {
    page.eval(
        "window.seen = { steps: new Set(), preview: false };
         new MutationObserver(() => {
             const bar = document.querySelector('#stage-bar progress');
             if (bar && bar.hasAttribute('value')) seen.steps.add(bar.value);
             const image = document.querySelector('#stage-view .preview');
             if (image && !image.hidden && image.src.startsWith('data:image/')) seen.preview = true;
         }).observe(document.querySelector('#stage'), { subtree: true, childList: true, attributes: true });",
    );
}

#[test]
fn a_picture_is_planned_made_watched_and_found_again() {
    let Some(visit) = Visit::begin(
        "a_picture_is_planned_made_watched_and_found_again",
        1280,
        800,
    ) else {
        return;
    };
    let page = &visit.page;
    page.press("/", 0);
    assert_eq!(page.text("document.activeElement.id"), "make-prompt");
    page.write(HEART);
    page.wait(
        "the plan says how much memory it takes",
        "/\\d.*[KMG]iB/.test(document.querySelector('#plan .strong').textContent)",
    );
    page.click("#make-presets label:nth-child(2)");
    page.wait(
        "the preset's steps stand in the field",
        "document.querySelector('#make-steps').placeholder === '30'",
    );
    page.fill("#make-seed", "18446744073709551614");
    watch(page);
    page.press("Enter", CTRL);
    page.wait(
        "the steps are counted",
        "seen.steps.size >= 3 && document.querySelector('#stage').dataset.state === 'running'",
    );
    page.screenshot("running");
    is_done(page);
    assert_eq!(page.eval("seen.preview"), true);
    page.wait(
        "it is in the gallery",
        "document.querySelectorAll('#gallery-list .thumb').length === 1",
    );
    page.screenshot("light");
    page.click("#gallery-list .thumb");
    page.wait(
        "its settings are told",
        "document.querySelector('#picture').open && \
         document.querySelector('#picture-facts').innerText.includes('18446744073709551614')",
    );
    assert_eq!(
        page.text("document.querySelector('#picture-prompt').textContent"),
        HEART
    );
    page.screenshot("picture");
    page.press("Escape", 0);
    page.wait(
        "Escape closed it",
        "!document.querySelector('#picture').open",
    );
    page.prefer("dark");
    page.screenshot("dark");
    visit.end();
}

#[test]
fn memory_falls_when_a_hand_moves_the_model_away() {
    let Some(visit) = Visit::begin("memory_falls_when_a_hand_moves_the_model_away", 1280, 1000)
    else {
        return;
    };
    let page = &visit.page;
    let held = "Number(document.querySelector('#memory-now').dataset.bytes)";
    let demo = "#models-list [data-key=demo]";
    let reaches = |place: &str| {
        page.wait(
            &format!("demo is {place}"),
            &format!("document.querySelector('{demo}').dataset.residency === '{place}'"),
        );
    };
    make(page, HEART);
    is_done(page);
    reaches("device");
    let weights = page.number(
        "fetch('/v1/models').then((r) => r.json()).then((list) => list.data.find((m) => m.id === 'demo').lowtide.bytes)",
    );
    page.wait(
        "the weights are in memory",
        &format!("{held} >= {weights} / 2"),
    );
    let before = page.number(held);

    page.click(&format!("{demo} [data-act=offload]"));
    reaches("host");
    page.wait(
        "memory fell",
        &format!("{held} <= {before} - {weights} / 2"),
    );
    page.screenshot("offloaded");

    page.click(&format!("{demo} [data-act=load]"));
    reaches("device");
    page.wait("memory rose", &format!("{held} >= {weights} / 2"));

    page.click(&format!("{demo} [data-act=release]"));
    reaches("unloaded");
    page.wait(
        "memory fell",
        &format!("{held} <= {before} - {weights} / 2"),
    );
    // The chart drew what was: a band for the model, the line of the budget.
    assert!(page.number("document.querySelectorAll('#memory-chart .band-0').length") >= 1.0);
    assert_eq!(
        page.number("document.querySelectorAll('#memory-chart .budget line').length"),
        1.0
    );
    page.screenshot("released");
    visit.end();
}

#[test]
fn every_language_fits_on_a_narrow_screen() {
    let Some(visit) = Visit::begin("every_language_fits_on_a_narrow_screen", 1280, 800) else {
        return;
    };
    let page = &visit.page;
    make(page, HEART);
    is_done(page);
    let mut titles = Vec::new();
    for language in ["zh-Hans", "zh-Hant", "ru", "en"] {
        page.choose("#language", language);
        page.wait(
            "the language is in use",
            &format!("document.documentElement.lang === '{language}'"),
        );
        titles.push(page.text("document.querySelector('#make-title').textContent"));
        for width in [360, 390, 760, 1000, 1280, 1920] {
            page.resize(width, 844);
            page.wait(
                &format!("{language} fits in {width} pixels"),
                "document.documentElement.scrollWidth <= innerWidth",
            );
            if width == 390 || width == 1280 {
                page.screenshot(&format!("{language}-{width}"));
            }
        }
    }
    assert_eq!(
        titles,
        ["生成图片", "產生圖片", "Новая картинка", "Make a picture"]
    );
    visit.end();
}

#[test]
fn a_picture_that_is_dropped_gives_its_settings_back() {
    let Some(visit) = Visit::begin(
        "a_picture_that_is_dropped_gives_its_settings_back",
        1280,
        800,
    ) else {
        return;
    };
    let page = &visit.page;
    page.fill("#make-negative", "blue: dark, \"deep\"");
    for (field, value) in [
        ("steps", "7"),
        ("guidance", "2.5"),
        ("seed", "9007199254740993"),
    ] {
        page.fill(&format!("#make-{field}"), value);
    }
    make(page, "a red heart, on a yellow: background");
    is_done(page);
    let file = page.text(
        "fetch(document.querySelector('#stage-view .picture img').src).then((r) => r.arrayBuffer())
            .then((b) => btoa(Array.from(new Uint8Array(b), (c) => String.fromCharCode(c)).join('')))",
    );
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("heart.png");
    std::fs::write(&picture, crate::cdp::base64(&file)).unwrap();
    page.click("#make-reset");
    let form = "['prompt', 'negative', 'steps', 'guidance', 'seed', 'width', 'height'].map((name) => \
                document.querySelector(`#make-${name}`).value).join('|')";
    assert_eq!(page.text(form), "||||||");
    page.drop_file(&picture);
    let wanted =
        "a red heart, on a yellow: background|blue: dark, \"deep\"|7|2.5|9007199254740993|128|128";
    page.wait("the settings are back", &format!("{form} === {wanted:?}"));

    // A file that ends in the middle changes nothing, and says so.
    let whole = std::fs::read(&picture).unwrap();
    std::fs::write(&picture, &whole[..20]).unwrap();
    page.drop_file(&picture);
    page.wait(
        "the broken file is named",
        "[...document.querySelectorAll('.toast.bad')].some((node) => node.textContent.includes('heart.png'))",
    );
    assert_eq!(page.text(form), wanted);
    visit.end();
}

#[test]
fn the_queue_obeys_hands() {
    let Some(visit) = Visit::begin("the_queue_obeys_hands", 1280, 900) else {
        return;
    };
    let page = &visit.page;
    page.click("#queue-hold");
    page.wait(
        "it is held",
        "!document.querySelector('#queue-held').hidden",
    );
    for prompt in [
        "a blue cat face",
        "a green frog",
        "<img src=x onerror=alert(1)>",
    ] {
        let rows = page.number("document.querySelectorAll('#queue-list .job').length");
        make(page, prompt);
        page.wait(
            "it waits",
            &format!("document.querySelectorAll('#queue-list .job').length === {rows} + 1"),
        );
    }
    let first = "document.querySelector('#queue-list .job .prompt').textContent";
    page.wait(
        "the first is first",
        &format!("{first} === 'a blue cat face'"),
    );
    page.wait(
        "markup is only text",
        "[...document.querySelectorAll('#queue-list .prompt')].some((node) => node.textContent.startsWith('<img'))",
    );
    page.click("#queue-list .job:last-child [data-act=front]");
    page.wait("the last is first", &format!("{first}.startsWith('<img')"));
    page.screenshot("queue");
    page.click("#queue-list .job:first-child [data-act=cancel]");
    page.wait("it is gone", &format!("{first} === 'a blue cat face'"));
    page.click("#queue-list .job:last-child [data-act=pause]");
    page.wait(
        "the other is paused",
        "document.querySelector('#queue-list .job:last-child').dataset.state === 'paused'",
    );
    page.click("#queue-hold");
    page.wait(
        "the one that waits is made",
        "document.querySelectorAll('#gallery-list .thumb').length === 1",
    );
    page.click("#queue-list [data-act=resume]");
    page.wait(
        "then the other",
        "document.querySelectorAll('#gallery-list .thumb').length === 2 && \
         !document.querySelector('#queue-list .job')",
    );
    visit.end();
}

#[test]
fn a_mask_is_drawn_over_a_picture_and_the_rest_stays() {
    let Some(visit) = Visit::begin(
        "a_mask_is_drawn_over_a_picture_and_the_rest_stays",
        1280,
        1000,
    ) else {
        return;
    };
    let page = &visit.page;
    make(page, HEART);
    is_done(page);
    // A result is what the next one begins from.
    page.click("#stage-bar [data-act=begin]");
    page.wait(
        "the picture is there to be drawn on",
        "document.querySelector('#begin-image').naturalWidth > 0 && document.querySelector('#begin-mask').width > 16",
    );
    page.eval(
        "document.querySelector('#begin-mask').scrollIntoView({ block: 'center', behavior: 'instant' })",
    );
    // The canvas is as large as the picture once that has been laid out; nobody draws within a moment of its coming.
    std::thread::sleep(std::time::Duration::from_millis(800));
    // By hand, then by keys, then one stroke is taken back.
    page.drag("#begin-mask", (0.2, 0.2), (0.4, 0.3));
    // The brush itself is grey, what it drew is not.
    let masked = "(() => { const { width, height } = document.querySelector('#begin-mask');
        const { data } = document.querySelector('#begin-mask').getContext('2d').getImageData(0, 0, width, height);
        let count = 0;
        for (let at = 0; at < data.length; at += 4) if (data[at + 3] > 200 && data[at] !== data[at + 1]) count += 1;
        return count; })()";
    let by_hand = page.number(masked);
    assert!(by_hand > 50.0, "{by_hand} points are masked");
    page.eval("document.querySelector('#begin-mask').focus()");
    page.press("]", 0);
    // Away from what was drawn by hand, so that the brush's own ring covers none of it.
    for _ in 0..6 {
        page.press("ArrowRight", 0);
    }
    page.press(" ", 0);
    assert!(page.number(masked) > by_hand, "keys draw, too");
    page.click("#begin-undo");
    page.fill("#make-strength", "0.875");
    page.fill("#make-seed", "11");
    page.wait(
        "the plan knows the mask",
        "/[KMG]iB/.test(document.querySelector('#plan .strong').textContent)",
    );
    page.screenshot("mask");
    page.click("#make-prompt");
    page.press("Enter", CTRL);
    page.wait(
        "another picture is there",
        "document.querySelectorAll('#gallery-list .thumb').length === 2",
    );
    is_done(page);
    let made = "fetch('/v1/jobs?limit=1').then((r) => r.json()).then((list) => fetch('/v1/jobs/' + list.jobs[0].id)).then((r) => r.json())";
    let request = |field: &str| {
        page.text(&format!(
            "{made}.then((job) => String(job.request.{field}))"
        ))
    };
    assert!(request("image").starts_with("sha256:"));
    assert!(request("mask").starts_with("sha256:"));
    assert_eq!(
        (request("strength"), request("seed")),
        ("0.875".to_owned(), "11".to_owned())
    );
    // Far from what was drawn nothing changed.
    page.eval(&format!(
        "window.pixels = async (url) => {{
             const image = new Image(); image.src = url; await image.decode();
             const canvas = new OffscreenCanvas(image.width, image.height);
             const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);
             return context.getImageData(0, 0, image.width, image.height);
         }};
         window.compared = (async () => {{
             const job = await {made};
             const [old, fresh] = await Promise.all([pixels('/v1/inputs/' + job.request.image), pixels(job.artifacts[0].url)]);
             const differs = (x, y) => [0, 1, 2].some((c) => old.data[4 * (y * old.width + x) + c] !== fresh.data[4 * (y * old.width + x) + c]);
             let inside = 0, corner = 0;
             for (let y = 0; y < old.height; y += 1) for (let x = 0; x < old.width; x += 1) {{
                 if (!differs(x, y)) continue;
                 if (x > old.width * 0.8 && y > old.height * 0.8) corner += 1; else inside += 1;
             }}
             return `${{inside > 0}} ${{corner}}`;
         }})();"
    ));
    assert_eq!(page.text("compared"), "true 0");
    // What it was made with comes back, the mask included; and goes when it is not wanted.
    page.click("#make-reset");
    page.wait(
        "it is gone",
        "document.querySelector('#begin-given').hidden",
    );
    page.click("#gallery-list .thumb");
    page.wait("it is told", "document.querySelector('#picture').open && document.querySelector('#picture-facts').innerText.includes('11')");
    page.screenshot("masked");
    page.click("#picture-acts .primary");
    page.wait("the mask is there again", &format!("{masked} > 50"));
    page.resize(390, 844);
    page.screenshot("mask_narrow");
    visit.end();
}
