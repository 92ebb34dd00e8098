"""Functions on real ranks: results, progress, and every way in which a rank can fail."""

from __future__ import annotations

import linecache
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import psutil
import pytest
import torch
import torch.distributed as dist
from parallel_inputs import SIZES, pool

from course_utils.parallel import launch
from course_utils.parallel.launch import Pool, RankError

QUICK = 10.0  # seconds: a failure is reported in 0.3 s; the rest is for a loaded machine


def total(add=0.0):
    x = torch.tensor([dist.get_rank() + add])
    dist.all_reduce(x)
    return x.item()


def failing(how, limit=30.0, world_size=3):
    """The error of a run in which `how(rank)` is called on each rank before a sum over all."""

    def body():
        how(dist.get_rank())
        return total()

    start = time.monotonic()
    with pytest.raises(RankError) as caught:
        pool().run(body, world_size=world_size, limit=limit)
    caught.value.seconds = time.monotonic() - start
    assert pool().run(total, world_size=world_size) == [total_of(world_size)] * world_size
    return caught.value


def total_of(world_size):
    return world_size * (world_size - 1) / 2


@pytest.mark.parametrize("world_size", SIZES)
def test_results_come_by_rank(world_size):
    """Also on more ranks than the machine has cores: 0 + 1 + 2 + 3."""

    def body(add):
        return dist.get_rank(), dist.get_world_size(), total(add=add)

    expected = total_of(world_size) + world_size
    assert pool().run(body, add=1.0, world_size=world_size) == [
        (rank, world_size, expected) for rank in range(world_size)
    ]


def test_a_function_takes_what_it_refers_to_along():
    """As one from a cell does: a closure over a tensor, a class and another function."""

    class Scaled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    weight = torch.arange(4.0).view(2, 2)

    def double(x):
        net = Scaled(2, 2, bias=False)
        net.weight.data = weight
        return net(x).detach()

    (ours,) = pool().run(lambda: double(torch.ones(2)), world_size=1)
    assert torch.equal(ours, 2 * weight.sum(1))


def test_progress_and_prints_come_back():
    heard = []

    def body():
        for step in range(3):
            launch.report(step)
        print("rank", dist.get_rank())
        os.write(2, b"from below\n")

    pool().run(body, world_size=2, progress=lambda rank, value: heard.append((rank, value)))
    assert sorted(heard) == [(rank, step) for rank in range(2) for step in range(3)]
    assert pool().printed == ["rank 0\nfrom below\n", "rank 1\nfrom below\n"]
    assert launch.report("outside of a worker") is None


def test_every_run_starts_from_the_same_random_state():
    def body():
        return torch.rand(()).item()

    first, again = (pool().run(body, world_size=2, seed=3) for _ in range(2))
    assert first == again
    assert first[0] == first[1]
    assert pool().run(body, world_size=1, seed=4)[0] != first[0]


def test_a_rank_that_raises_is_named_with_its_own_traceback():
    def how(rank):
        if rank == 1:
            raise KeyError("mine")

    error = failing(how)
    assert (error.rank, error.kind) == (1, "raised")
    assert "rank 1 of 3 raised KeyError: 'mine'" in str(error)
    assert 'raise KeyError("mine")' in error.traceback
    assert "worker.py" not in error.traceback
    assert error.seconds < QUICK


def test_the_cause_is_named_even_when_its_neighbours_are_heard_first():
    """Rank 2 closes its connections a while before it says why; the others complain at once."""

    def how(rank):
        if rank == 2:
            dist.destroy_process_group()
            time.sleep(0.2)
            raise ValueError("the cause")
        total()

    assert "rank 2 of 3 raised ValueError: the cause" in str(failing(how))


def test_where_all_fail_alike_the_first_rank_is_named():
    def how(rank):
        time.sleep(0.05 * (2 - rank))
        raise ValueError("everywhere")

    assert failing(how).rank == 0


def test_a_traceback_shows_the_lines_of_a_cell():
    """Which is no file: the rank knows of it what this process does."""
    source = "def body():\n    raise ValueError('from a cell')\n"
    cell = "/nowhere/cell_7.py"
    linecache.cache[cell] = (len(source), None, source.splitlines(keepends=True), cell)
    names = {"__name__": "__main__"}
    exec(compile(source, cell, "exec"), names)
    with pytest.raises(RankError) as caught:
        pool().run(names["body"], world_size=1)
    assert "line 2, in body\n    raise ValueError('from a cell')" in caught.value.traceback


def test_an_exit_is_a_failure():
    def how(rank):
        if rank == 1:
            sys.exit(3)

    assert "rank 1 of 3 raised SystemExit: 3" in str(failing(how))


@pytest.mark.parametrize("code", ["killed", "ended"])
def test_a_rank_that_dies(code):
    def how(rank):
        if rank == 2:
            print("last words")
            os.kill(os.getpid(), signal.SIGKILL) if code == "killed" else os._exit(7)

    error = failing(how)
    assert (error.rank, error.kind) == (2, "died")
    said = {"killed": "was killed by SIGKILL; the system kills so when memory", "ended": "code 7"}
    assert said[code] in str(error)
    assert "last words" in str(error)
    assert error.seconds < QUICK


def test_a_rank_that_runs_out_of_memory():
    resource = pytest.importorskip("resource")

    def how(rank):
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
            torch.ones(2**31)

    error = failing(how)
    assert (error.rank, error.kind) == (1, "raised")
    assert "allocate memory" in str(error)


def test_a_rank_that_hangs_is_shown_where_it_is():
    """The others wait for it inside a collective: it is the cause, and comes first."""

    def how(rank):
        if rank == 1:
            time.sleep(600)

    error = failing(how, limit=1.0)
    assert (error.rank, error.kind) == (1, "hung")
    assert "rank 1 of 3 did not answer within 1 s" in str(error)
    for rank, inside in ((1, "in how"), (0, "all_reduce"), (2, "all_reduce")):
        assert inside in error.traceback.partition(f"rank {rank} is here")[2].partition("\n\n")[0]
    assert 1 < error.seconds < 1 + QUICK


def test_a_rank_that_never_arrives():
    """It has left already when the others begin to add up."""

    def body():
        return 0 if dist.get_rank() == 0 else total()

    with pytest.raises(RankError, match=r"within 1 s \(limit\); finished: rank 0"):
        pool().run(body, world_size=3, limit=1)


def test_a_rank_may_finish_long_before_the_others():
    """Its connections stay open until all are done."""

    def body():
        if dist.get_rank() == 0:
            dist.send(torch.ones(1), 1)
            return 0.0
        time.sleep(0.3)
        x = torch.zeros(1)
        dist.recv(x, 0)
        return x.item()

    assert pool().run(body, world_size=2) == [0.0, 1.0]


def test_an_answer_that_cannot_be_sent():
    def body():
        return threading.Lock() if dist.get_rank() == 1 else 0

    with pytest.raises(RankError, match=r"rank 1 of 2 raised TypeError: cannot pickle"):
        pool().run(body, world_size=2)


def test_a_function_that_cannot_be_sent():
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"cannot be sent to another process.*make what it needs"):
        pool().run(lambda: lock, world_size=1)
    with pytest.raises(TypeError, match=r"function is 3; give something that can be called"):
        pool().run(3, world_size=1)


@pytest.mark.parametrize("world_size", [0, 5, 1.5, True + 4])
def test_world_sizes_that_the_pool_has_not(world_size):
    with pytest.raises(ValueError, match=rf"world_size is {world_size}; this pool has 4 workers"):
        pool().run(total, world_size=world_size)


def test_other_bad_input():
    with pytest.raises(ValueError, match="limit is 0 seconds"):
        pool().run(total, limit=0)
    with pytest.raises(ValueError, match="size is 0; a pool has at least one worker"):
        Pool(0)


def test_an_interrupt_ends_the_run_and_keeps_the_pool():
    """The workers ignore it; the caller gets it and replaces them."""
    # A process started in the background of a shell ignores the signal, and so do its children.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _interrupt_a_run()
    finally:
        signal.signal(signal.SIGINT, usual)


def _interrupt_a_run() -> None:
    before = pool().pids[:2]
    main = threading.main_thread().ident
    timer = threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        pool().run(lambda: time.sleep(600), world_size=2)
    timer.join()
    assert not any(psutil.pid_exists(pid) for pid in before)
    assert pool().run(total, world_size=2) == [1.0, 1.0]


def test_two_pools_at_once_do_not_meet():
    """As in two notebooks: there is no port that both could want."""

    def body(add):
        time.sleep(0.1)
        return [total(add) for _ in range(5)]

    answers = {}
    with Pool(2) as other:

        def run(pool, add):
            answers[add] = pool.run(body, add, world_size=2)

        threads = [threading.Thread(target=run, args=a) for a in ((pool(), 0.0), (other, 10.0))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {0.0: [[1.0] * 5] * 2, 10.0: [[21.0] * 5] * 2}


def test_a_closed_pool_has_no_processes_and_says_so():
    other = Pool(2)
    pids, folder = other.pids, other._folder
    other.close()
    other.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not folder.exists()
    with pytest.raises(ValueError, match="the pool is closed"):
        other.run(total)


def test_run_needs_no_pool():
    assert launch.run(total, 2, add=1.0) == [3.0, 3.0]


SCRIPT = """
import os, signal, time
from course_utils.parallel import launch

launch.PRELOADED = [launch.worker.__name__]  # no optimizer here
caller = os.getpid()
pool = launch.Pool(2)  # without `if __name__ == "__main__"`

def body():
    print("a rank runs")
    return os.getpid()

print(*pool.run(body), flush=True)
{ending}
"""


@pytest.mark.parametrize(
    "ending",
    [
        "raise ValueError",  # ends without closing the pool
        "pool.run(lambda: os.kill(caller, signal.SIGKILL) or time.sleep(600))",
    ],
    ids=["ends", "is killed in a run"],
)
def test_no_worker_outlives_its_caller(ending):
    script = SCRIPT.format(ending=ending)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    end = time.monotonic() + QUICK
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert "a rank runs" not in done.stdout


def test_no_warning_from_starting_processes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        launch.run(total, 1)
