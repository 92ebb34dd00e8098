"""The `course` command. Every import of weight waits inside the command that needs it."""

from __future__ import annotations

import io
import sys

import click


class UserMessage(click.ClickException):
    """A wrong name or a missing piece: one sentence on standard error, exit status 2."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        click.echo(f"course: {self.message}", err=True)


class Commands(click.Group):
    """Commands in the order a user meets them; the course's own errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in ORDER if name in self.commands]

    def invoke(self, ctx: click.Context) -> object:
        _replace_what_the_streams_cannot_hold()
        from course_utils.assets.catalogue import AssetError
        from course_utils.runner.notebooks import UsageError

        try:
            return super().invoke(ctx)
        except (UsageError, AssetError) as error:
            raise UserMessage(str(error)) from error


def _replace_what_the_streams_cannot_hold() -> None:
    """Print ? for an arrow in Latin-1, or for half a character, instead of stopping there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


ORDER = (
    "fetch",
    "run",
    "check",
    "record",
    "replicate",
    "train",
    "claims",
    "badges",
    "new",
    "doctor",
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llms-measured")
@click.pass_context
def main(ctx: click.Context) -> None:
    """LLMs, Measured: fetch, run, record and check the notebooks of the course.

    A NOTEBOOK is named by its number (09), its name (09_decoding) or a path; none means all.
    """
    from course_utils.runner.checkout import require_own_code

    if ctx.invoked_subcommand != "doctor":  # which says it in its own way
        require_own_code()


@main.command()
@click.argument("notebooks", nargs=-1, metavar="[NOTEBOOK]...")
@click.option("--profile", default="cpu", show_default=True, help="cpu (a laptop) or gpu.")
@click.option(
    "-p",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Set a parameter, in each notebook that declares it.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Notebooks at once; they share the cores.",
)
@click.option(
    "--out", metavar="DIR", help="Output folder or s3:// address.  [default: runs/PROFILE]"
)
@click.option("--resume", is_flag=True, help="Keep finished outputs that are still valid.")
@click.option("--strict", is_flag=True, help="Stop a notebook at a claim that does not hold.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Limit for one notebook.  [default: 1800 on cpu, 21600 on gpu]",
)
def run(
    notebooks: tuple[str, ...],
    profile: str,
    parameters: tuple[tuple[str, str], ...],
    jobs: int,
    out: str | None,
    resume: bool,
    strict: bool,
    timeout: float | None,
) -> None:
    """Execute notebooks; keep outputs, claims.json and report.html.

    Exit status 1 when a notebook failed, 2 for a wrong name, 130 after Ctrl-C.
    """
    from course_utils.runner.notebooks import parse_value
    from course_utils.runner.run import run as run_notebooks

    status = run_notebooks(
        notebooks,
        profile=profile,
        parameters={name: parse_value(value) for name, value in parameters},
        jobs=jobs,
        out=out,
        resume=resume,
        strict=strict,
        timeout=timeout,
    )
    sys.exit(status)


@main.command()
@click.argument("notebooks", nargs=-1, metavar="[NOTEBOOK]...")
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Notebooks at once."
)
def check(notebooks: tuple[str, ...], jobs: int) -> None:
    """Compare every committed output with a fresh run (nbval).

    Says at the end which notebooks were recorded with other code; that alone is no failure.
    """
    from course_utils.runner.guard import check as check_notebooks

    sys.exit(check_notebooks(notebooks, jobs=jobs))


@main.command()
@click.argument("notebooks", nargs=-1, metavar="[NOTEBOOK]...")
def record(notebooks: tuple[str, ...]) -> None:
    """Execute on the CPU and store the outputs.

    No parameters are set. A notebook whose code and outputs are what they were keeps its file, so
    recording twice leaves no difference. The README's table of notebooks is brought up to date.
    """
    from course_utils.runner import readme
    from course_utils.runner.notebooks import find_root
    from course_utils.runner.record import record as record_notebooks

    status = record_notebooks(notebooks)
    readme.refresh(find_root())
    sys.exit(status)


@main.command()
@click.argument("notebooks", nargs=-1, metavar="[NOTEBOOK]...")
@click.option("--seeds", metavar="0-9", help="Seeds to run.  [default: 0-9, on to 19 if one fails]")
@click.option(
    "--isa",
    default="best,avx2,sse",
    show_default=True,
    help="Instruction sets: the first for even seeds, the others in turn for odd ones.",
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at once.")
@click.option("--runs", type=click.IntRange(1), help="So many runs instead of the whole plan.")
def replicate(
    notebooks: tuple[str, ...], seeds: str | None, isa: str, jobs: int, runs: int | None
) -> None:
    """Run over seeds and machines, and record the claims.

    Each run has one thread; runs of the same code that are there already are kept, so that it can
    be interrupted. Writes data/replications. Exit status 1 when a measured claim held in fewer than
    all of 10, or 19 of 20 runs, or a notebook stopped.
    """
    from course_utils.runner import replicate as replications

    wanted = replications.parse_seeds(seeds) if seeds else None
    status = replications.replicate(
        notebooks, seeds=wanted, isas=isa.split(","), jobs=jobs, runs=runs
    )
    sys.exit(status)


@main.command()
@click.argument("recipe", metavar="CHECKPOINT")
@click.option("--profile", default="cpu", show_default=True, help="cpu (a laptop) or gpu.")
@click.option("--seed", default=0, show_default=True, help="Of weights, order and dropout.")
@click.option("--out", metavar="DIR", help="Where to write.  [default: data/checkpoints/NAME]")
def train(recipe: str, profile: str, seed: int, out: str | None) -> None:
    """Train one of the course's own checkpoints again.

    CHECKPOINT is its name, such as g2p-transformer. Weights and card are written at the end.
    """
    from importlib import import_module

    from course_utils.profiles import DeviceError
    from course_utils.recipes import RECIPES

    if recipe not in RECIPES:
        raise UserMessage(f"there is no recipe {recipe!r}; the course has {', '.join(RECIPES)}")
    try:
        click.echo(import_module(RECIPES[recipe]).train(profile, seed, out))
    except (DeviceError, ValueError) as error:
        raise UserMessage(str(error)) from error


@main.command()
@click.argument("assets", nargs=-1, metavar="[ASSET]...")
@click.option("--verify", is_flag=True, help="Hash what is in the cache, and repair it.")
def fetch(assets: tuple[str, ...], verify: bool) -> None:
    """Fetch and verify models and data, once.

    Everything after that works offline. Without names, all of them.
    """
    from course_utils.assets.catalogue import cache_folder
    from course_utils.models import fetch_all

    folders = fetch_all(assets or None, verify=verify)
    click.echo(f"{len(folders)} assets are in {cache_folder()}")


@main.command()
@click.option("--from", "folder", metavar="DIR", help="Outputs of a run.  [default: notebooks]")
def claims(folder: str | None) -> None:
    """Print the ledger of measured claims.

    Exit status 1 when an id stands twice.
    """
    from course_utils.runner import display, ledger
    from course_utils.runner.notebooks import find_root

    found = ledger.gather(find_root(), folder)
    out = display.console()
    out.print(display.claims_table(found) if found else "no claims")
    repeated = ledger.twice(found)
    for sentence in repeated:
        out.print(sentence, style="red", markup=False)
    sys.exit(bool(repeated))


@main.command()
@click.option("--check", is_flag=True, help="Only say what is stale; exit status 1 if anything is.")
def badges(check: bool) -> None:
    """Refresh badges, Colab cells, records and README table.

    The Colab badge and set-up cell of each notebook are made from [tool.course] repository in
    pyproject.toml; what a box says of recorded runs from data/replications; the README's table from
    the notebooks.
    """
    from course_utils.runner import boxes, opening, readme
    from course_utils.runner.notebooks import find_root

    root = find_root()
    paths = [
        path for part in (opening, boxes) for path in (part.stale if check else part.refresh)(root)
    ]
    stale = list(dict.fromkeys(path.name for path in paths))
    if readme.is_stale(root) if check else readme.refresh(root):
        stale.append("README.md")
    for name in stale:
        click.echo(f"{name}: {'stale; run course badges' if check else 'refreshed'}")
    sys.exit(bool(stale) and check)


@main.command()
@click.argument("name")
def new(name: str) -> None:
    """Start a notebook from the standard cells.

    NAME is like 17_new_topic.
    """
    from course_utils.runner.notebooks import find_root
    from course_utils.runner.opening import create

    click.echo(create(name, find_root()))


@main.command()
def doctor() -> None:
    """Say what is missing, and the remedy.

    Exit status 1 when there is a problem.
    """
    from course_utils.runner.doctor import examine
    from course_utils.runner.notebooks import find_root

    problems = 0
    for finding in examine(find_root()):
        problems += bool(finding.remedy)
        word = click.style("problem", fg="red") if finding.remedy else click.style("ok", fg="green")
        click.echo(f"{finding.subject:10}{word}  {finding.found}")
        if finding.remedy:
            click.echo(f"{'':10}remedy: {finding.remedy}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
