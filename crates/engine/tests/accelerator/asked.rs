//! What is asked of pipelines on a device.

use lowtide_engine::{Engine, Hires, ImageRequest, Outcome, Step, Upscaler};

pub(crate) fn request() -> ImageRequest {
    ImageRequest {
        prompt: "a red heart".to_owned(),
        width: 64,
        height: 96,
        steps: 3,
        guidance: 4.0,
        count: 2,
        ..ImageRequest::default()
    }
}

/// With both directions of the VAE.
pub(crate) fn with_second_pass() -> ImageRequest {
    ImageRequest {
        hires: Some(Hires {
            width: 96,
            height: 144,
            steps: 2,
            strength: 0.6,
            upscaler: Upscaler::Lanczos,
        }),
        ..request()
    }
}

pub(crate) fn run(engine: &Engine, request: ImageRequest) -> Outcome {
    let mut session = engine.start(request, true).expect("it fits");
    loop {
        if let Step::Finished(outcome) = session.step().expect("a step") {
            return *outcome;
        }
    }
}
