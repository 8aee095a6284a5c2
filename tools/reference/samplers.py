"""Trajectories of diffusers' schedulers under a fixed cheap network, for crates/models/tests/samplers.rs.

    .venv/bin/pip install scipy torchsde
    .venv/bin/python samplers.py ../../crates/models/tests/fixtures

samplers.json has the cases; samplers.f32 has, for each case from its offset (in values, little-endian f32):
the initial standard deviation, the timesteps, the samples after the calls named in `kept`, and the picture's latents as noisy
as the sample after the first call.
"""

import inspect
import json
import logging
import sys
import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch

SHAPE = (1, 1, 4, 4)
SEED = 11
PATH_SEED = 7
STEPS = [1, 2, 5, 20, 30]
STABLE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
METHODS = {
    "DDIM": ("DDIMScheduler", {}),
    "PLMS": ("PNDMScheduler", {}),
    "LCM": ("LCMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {}),
    "DPM++ SDE": ("DPMSolverSDEScheduler", {"noise_sampler_seed": PATH_SEED}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
OPTION = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}
BY_TABLE = {"DDIM", "PLMS", "LCM"}
NO_SAMPLE = {"PLMS", "Euler a", "DPM++ SDE"}


def network(x, t):
    x = x.flatten()
    return torch.sin(0.5 * x - 0.3 * x.roll(-1) + 0.002 * torch.tensor(float(t), dtype=torch.float32)).reshape(SHAPE)


def picture():
    return torch.cos(0.7 * torch.arange(16, dtype=torch.float32)).reshape(SHAPE)


def levels(method, scheduler, steps, schedule):
    """Sets the timesteps of schedules that the class has no option for."""
    if schedule == "simple":
        table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5
        stride = len(table) / steps
        whole = [len(table) - 1 - int(i * stride) for i in range(steps)]
        if "timesteps" in inspect.signature(scheduler.set_timesteps).parameters:
            scheduler.set_timesteps(timesteps=whole)
            return
        scheduler.set_timesteps(steps)
        sigmas = table[whole]
        scheduler.timesteps = torch.tensor(whole, dtype=scheduler.timesteps.dtype)
        if method == "DPM++ SDE":
            logarithms = np.log(table.numpy())
            middles = scheduler._second_order_timesteps(sigmas.numpy().astype(np.float64), logarithms)
            t = scheduler.timesteps
            scheduler.timesteps = torch.cat([t[:1], t[1:].repeat_interleave(2)])
            scheduler.timesteps[1::2] = torch.tensor(middles)
            sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)])
        scheduler.sigmas = torch.cat([sigmas, torch.zeros(1)])
    else:
        euler = diffusers.EulerDiscreteScheduler.from_config({**scheduler.config, OPTION[schedule]: True})
        euler.set_timesteps(steps)
        scheduler.set_timesteps(steps)
        scheduler.sigmas, scheduler.timesteps = euler.sigmas, euler.timesteps


def flow_cases():
    base = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    for steps in STEPS:
        for schedule in ["normal", *OPTION]:
            yield {"config": {**base, "shift": 3.0}, "method": "Flow Euler", "schedule": schedule, "steps": steps}
    for extra in [
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.02},
        {"shift": 1.0, "shift_terminal": 0.1},
        {"shift": 2.5, "stochastic_sampling": True},
    ]:
        case = {"config": {**base, **extra}, "method": "Flow Euler", "schedule": "normal", "steps": 5, "tokens": 1024}
        yield case
        yield {**case, "begin": {"strength": 0.6}}
        yield {**case, "flow_sigmas": [1 - i / 5 for i in range(5)]}


def cases():
    for method in METHODS:
        schedules = ["normal"] if method in BY_TABLE else ["normal", "karras", "exponential", "simple", "beta"]
        for schedule in schedules:
            for prediction in ["epsilon", "v_prediction", "sample"]:
                if prediction == "sample" and method in NO_SAMPLE:
                    continue
                for steps in STEPS:
                    yield variant(method, {"prediction_type": prediction}, schedule, steps)
    for method in METHODS:
        for spacing in ["linspace", "trailing"]:
            for steps in [1, 5, 7, 20]:
                yield variant(method, {"timestep_spacing": spacing, "steps_offset": 0}, "normal", steps)
        for steps in [5, 16]:
            for strength in [0.3, 0.75, 1.0]:
                yield {**variant(method, {}, "normal", steps), "begin": {"strength": strength}}
                if method not in BY_TABLE:
                    yield {**variant(method, {}, "karras", steps), "begin": {"strength": strength}}
            for part in [{"end": 0.8}, {"start": 0.8}, {"start": 0.4, "end": 0.7}]:
                yield {**variant(method, {}, "normal", steps), "begin": part}
        zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        for schedule in ["normal", "karras"] if method not in BY_TABLE else ["normal"]:
            yield variant(method, zero, schedule, 10)
        yield variant(method, {"beta_schedule": "squaredcos_cap_v2"}, "normal", 10)
        yield variant(method, {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}, "normal", 10)
        yield variant(method, {"num_train_timesteps": 400, "steps_offset": 0}, "normal", 8)
        # What a file leaves out is the class' own default.
        bare = {"_class_name": METHODS[method][0], "skip_prk_steps": True, **METHODS[method][1]}
        yield {"config": bare, "method": method, "schedule": "normal", "steps": 6}
        if method not in BY_TABLE and method != "Euler a":
            yield variant(method, {"beta_schedule": "squaredcos_cap_v2"}, "karras", 10)
    for eta in [0.3, 1.0]:
        yield {**variant("DDIM", {}, "normal", 12), "eta": eta}
    for method in ["DDIM", "LCM", "Heun"]:
        yield variant(method, {"clip_sample": True, "clip_sample_range": 0.8}, "normal", 6)
    yield variant("DDIM", {"set_alpha_to_one": True}, "normal", 6)
    yield variant("LCM", {"original_inference_steps": 100, "timestep_scaling": 5.0}, "normal", 7)
    for method in ["Euler", "DPM++ 2M", "DPM++ 2S", "UniPC", "DPM++ 2M SDE"]:
        for schedule in ["normal", "karras", "exponential"]:
            yield variant(method, {"final_sigmas_type": "sigma_min"}, schedule, 8)
    yield variant("Euler", {"sigma_min": 0.1, "sigma_max": 9.0}, "karras", 8)
    yield variant("UniPC", {"sigma_min": 0.1, "sigma_max": 9.0}, "exponential", 8)
    for method in ["DPM++ 2M", "DPM++ 2M SDE"]:
        for extra in [
            {"solver_order": 1},
            {"solver_order": 3},
            {"solver_type": "heun"},
            {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
            {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
            {"lambda_min_clipped": -1.5, "timestep_spacing": "linspace"},
            {"lambda_min_clipped": -1.5, "timestep_spacing": "trailing"},
        ]:
            for steps in [6, 17]:
                yield variant(method, extra, "normal", steps)
    for extra in [
        {"solver_order": 1},
        {"solver_type": "heun"},
        {"lower_order_final": True, "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"lambda_min_clipped": -1.5},
    ]:
        for steps in [6, 7]:
            yield variant("DPM++ 2S", extra, "normal", steps)
    for extra in [
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"disable_corrector": [0, 2]},
    ]:
        for steps in [6, 17]:
            yield variant("UniPC", extra, "normal", steps)
    yield from flow_cases()


def variant(method, extra, schedule, steps):
    name, own = METHODS[method]
    config = {"_class_name": name, **STABLE, **own, **extra}
    return {"config": config, "method": method, "schedule": schedule, "steps": steps}


def cut(scheduler, fraction):
    count = scheduler.config.num_train_timesteps
    return int(round(count - fraction * count))


def begin(scheduler, case):
    """The part of the timesteps that the pipelines would run, as their get_timesteps does."""
    timesteps, first = scheduler.timesteps, 0
    part = case.get("begin", {})
    if "strength" in part:
        kept = min(int(case["steps"] * part["strength"]), case["steps"])
        first = (case["steps"] - kept) * scheduler.order
        timesteps = timesteps[first:]
    if "start" in part:
        rest = (timesteps < cut(scheduler, part["start"])).sum().item()
        if scheduler.order == 2 and rest % 2 == 0:
            rest += 1
        first = len(timesteps) - rest
        timesteps = timesteps[first:]
    if "end" in part:
        timesteps = timesteps[: len([t for t in timesteps if t >= cut(scheduler, part["end"])])]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return timesteps


def run(case):
    method, schedule, config = case["method"], case["schedule"], dict(case["config"])
    name = config.pop("_class_name")
    lacks = method == "Euler a" and schedule in OPTION
    if schedule in OPTION and not lacks:
        config[OPTION[schedule]] = True
    scheduler = getattr(diffusers, name).from_config(config)
    if schedule == "simple" or lacks:
        levels(method, scheduler, case["steps"], schedule)
    elif method == "Flow Euler":
        options = {}
        if scheduler.config.use_dynamic_shifting:
            c = scheduler.config
            slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
            options["mu"] = case["tokens"] * slope + c.base_shift - slope * c.base_image_seq_len
        if "flow_sigmas" in case:
            options["sigmas"] = case["flow_sigmas"]
        scheduler.set_timesteps(case["steps"], **options)
    else:
        scheduler.set_timesteps(case["steps"])
    timesteps = begin(scheduler, case)
    if len(timesteps) == 0:
        return None
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(SHAPE, generator=generator)
    add = scheduler.scale_noise if method == "Flow Euler" else scheduler.add_noise
    noised = (lambda t: add(picture(), t, noise)) if method == "Flow Euler" else (lambda t: add(picture(), noise, t))
    sigma = float(getattr(scheduler, "init_noise_sigma", 1.0))
    sample = noise * sigma if "begin" not in case else noised(timesteps[:1])
    accepted = inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if "generator" in accepted else {}
    if "eta" in case:
        options["eta"] = case["eta"]
    calls = len(timesteps)
    kept = sorted({0, 1, 2, calls // 2, calls - 1} & set(range(calls)))
    samples, inpainted = [], picture()
    for call, t in enumerate(timesteps):
        scaled = sample if method == "Flow Euler" else scheduler.scale_model_input(sample, t)
        sample = scheduler.step(network(scaled, t), t, sample, return_dict=False, **options)[0].float()
        if call in kept:
            samples.append(sample)
        if call == 0 and calls > 1:
            inpainted = noised(timesteps[1:2])
    values = [torch.tensor([sigma]), timesteps.float(), *[s.flatten() for s in samples], inpainted.flatten()]
    return kept, torch.cat([v.float() for v in values]).numpy()


def main(folder):
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    diffusers.logging.set_verbosity_error()
    offset, listed, blobs = 0, [], []
    for case in cases():
        try:
            result = run(case)
        except (ValueError, IndexError, RuntimeError, AssertionError) as error:
            print("left out:", case, error)
            continue
        if result is None or not np.isfinite(result[1]).all():
            print("left out:", case, "nothing" if result is None else "not finite")
            continue
        kept, values = result
        calls = len(values) - 1 - 16 * (len(kept) + 1)
        listed.append({**case, "calls": calls, "kept": kept, "at": offset})
        offset += len(values)
        blobs.append(values.astype("<f4"))
    (folder / "samplers.f32").write_bytes(np.concatenate(blobs).tobytes())
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in listed)
    (folder / "samplers.json").write_text(f"[\n{lines}\n]\n")
    print(len(listed), "cases,", offset * 4, "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
