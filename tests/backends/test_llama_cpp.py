"""llama.cpp inside this process: silent, quick to end, and clear about what it can't load."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import torch
from scripts import run_python

from course_utils import models
from course_utils.backends.protocol import EngineError
from course_utils.engines import load_engine


def test_a_damaged_file_is_explained_in_silence(tmp_path, capfd):
    text, cut = tmp_path / "text.gguf", tmp_path / "cut.gguf"
    text.write_text("not a model")
    with pytest.raises(EngineError, match="is not a GGUF file"):
        load_engine("llama.cpp", text)
    with models.gguf_path().open("rb") as whole:
        cut.write_bytes(whole.read(5_000_000))
    with pytest.raises(EngineError, match="is damaged"):
        load_engine("llama.cpp", cut)
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_comes_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(EngineError, match=r"pip install xllamacpp.*load_engine\('transformers'"):
        load_engine("llama.cpp")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(EngineError, match="device is 'cuda'"):
        load_engine("llama.cpp", device="cuda")


def test_two_engines_at_once_are_silent_and_leave_nothing_behind():
    """Also the second one loaded, and streams at the level of file descriptors."""
    done = run_python("""
        import os, psutil
        from course_utils.engines import load_engine
        me = psutil.Process()
        for round in range(3):
            with load_engine("llama.cpp", parallel=2) as a, load_engine("llama.cpp") as b:
                assert a.generate("The sea", max_new_tokens=8) == b.generate(
                    "The sea", max_new_tokens=8
                )
            if round == 0:
                threads = me.num_threads()
                assert threads <= 2, threads  # this one and llama.cpp's logger
        assert me.num_threads() <= threads and not me.children(), me.threads()
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_engine_that_is_closed_at_once_does_not_hang():
    """A llama.cpp server that is stopped before its loop has begun waits for ever."""
    done = run_python("""
        from course_utils.engines import load_engine
        for _ in range(8):
            load_engine("llama.cpp", context_window=64, parallel=1).close()
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_does_not_wait_for_the_answers():
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            # In the background of a shell it would be ignored.
            "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from course_utils.engines import load_engine\n"
            "with load_engine('llama.cpp', parallel=4) as engine:\n"
            "    print('ready', flush=True)\n"
            "    engine.generate(['The sea'] * 200, max_new_tokens=2000, temperature=1.0)\n",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)  # the answers would take an hour
    finally:
        process.kill()
    assert errors.strip().endswith("KeyboardInterrupt")
    assert process.returncode != 0
