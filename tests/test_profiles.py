"""Budgets by profile, devices that must agree with the CPU, seeds and threads."""

import pytest
import torch

from course_utils import profiles
from course_utils.profiles import DeviceError, device_for, for_profile, seed_everything, threads


def test_budget_of_the_profile():
    assert for_profile("gpu", cpu=dict(steps=3), gpu=dict(steps=20)).steps == 20


@pytest.mark.parametrize(
    ("profile", "budgets", "message"),
    [
        ("tpu", dict(cpu={}, gpu={}), "PROFILE is 'tpu'; it must be one of cpu, gpu"),
        ("cpu", dict(cpu={}), "no budget for profile gpu"),
        ("cpu", dict(cpu=dict(a=1), gpu=dict(b=1)), "not in every profile: a, b"),
    ],
)
def test_bad_budgets(profile, budgets, message):
    with pytest.raises(ValueError, match=message):
        for_profile(profile, **budgets)


def test_cpu_is_always_there():
    assert device_for("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_gpu_profile_without_gpu_says_what_to_do():
    with pytest.raises(DeviceError, match="use PROFILE='cpu'"):
        device_for("gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu():
    assert profiles.verify_device("cuda") <= 1e-3


def test_a_device_that_computes_wrong_numbers_is_refused(monkeypatch):
    honest = profiles._small_training
    monkeypatch.setattr(
        profiles,
        "_small_training",
        lambda device: honest(torch.device("cpu")) * (1.1 if device.type == "meta" else 1.0),
    )
    assert profiles.verify_device("cpu") == 0
    with pytest.raises(DeviceError, match="disagrees with the CPU by 0"):
        profiles.verify_device("meta")


def test_a_device_that_computes_nan_is_refused(monkeypatch):
    monkeypatch.setattr(profiles, "_small_training", lambda device: torch.tensor([torch.nan]))
    with pytest.raises(DeviceError, match="disagrees"):
        profiles.verify_device("cpu")


def test_seed_repeats_everything():
    import random

    import numpy as np

    def draw():
        generator = seed_everything(3)
        mine = torch.rand(2, generator=generator).tolist()
        return random.random(), np.random.rand(), torch.rand(2).tolist(), mine  # noqa: NPY002

    assert draw() == draw()


@pytest.mark.parametrize(("named", "number"), [("3", 3), ("4,2", 4), (" 2 ", 2), ("1", 1)])
def test_threads_respect_the_environment(monkeypatch, named, number):
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    assert threads() == number


def test_threads_are_the_cores_allowed_where_the_environment_names_no_number(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert threads() >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert threads() >= 1
