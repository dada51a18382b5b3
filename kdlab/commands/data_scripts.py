"""What the scripts in data_scripts share: their options, their errors, and the two ways to get a set."""

import argparse
import errno
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from kdlab.commands.endings import CLOSED_PIPE, INTERRUPTED, drop_output
from kdlab.commands.options import whole
from kdlab.data import direct_sets, restoration_sets
from kdlab.data.catalogue import DirectSet, RestorationSet
from kdlab.data.images import few, printable
from kdlab.data.manifest import differences, hashes
from kdlab.errors import InputError, unknown
from kdlab.files import why

T = TypeVar("T")


def parser_of(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


# --- make_*.py --------------------------------------------------------------------------------------------------------


def add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="to make; it must not exist")
    parser.add_argument(
        "--check", action="store_true", help="make nothing: compare the files in the folder with its manifest of hashes"
    )


def make(script: str, args: argparse.Namespace, write: Callable[[], object]) -> None:
    """Write the folder, or check it, and say so; ends the program with a message where that cannot be done."""
    with _plain_errors(script):
        if not args.check:
            write()
            print(f"written: {printable(args.folder)}")
            return
        found = differences(args.folder)
        if any(found):
            raise InputError(f"{printable(args.folder)}: {found}. Delete the folder and make it again.")
        print(f"{printable(args.folder)}: {len(hashes(args.folder)):,} files, all as they were written")


@contextmanager
def _plain_errors(script: str) -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()  # what has become of the output is noticed here, and not while Python shuts down
    except InputError as error:
        raise SystemExit(f"{script}: {error}") from error
    except BrokenPipeError:
        drop_output()
        raise SystemExit(CLOSED_PIPE) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        drop_output()
        raise SystemExit(f"{script}: {why(error)}. Make room, then run again.") from error
    except KeyboardInterrupt:
        print(f"{script}: interrupted. The same command goes on, or begins again.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


# --- get_*.py ---------------------------------------------------------------------------------------------------------


def get_direct(script: str, description: str | None, sets: Sequence[DirectSet]) -> None:
    """The whole of a script that gets sets with addresses."""
    parser = _get_parser(description, [one.name for one in sets])
    parser.add_argument(
        "--base-url",
        default="",
        metavar="URL",
        help="where the same archives are, such as a mirror nearby; their hashes have to be the official ones' "
        "(default: the official addresses)",
    )
    args = parser.parse_args()
    with _plain_errors(script):
        if args.list:
            for one in sets:
                size = ", ".join(f"{count:,} {split}" for split, count in one.counts.items())
                print(_entry(one.name, one.title, one.task, f"{size} images", one.licence, one.used))
            return

        def work(one: DirectSet) -> str:
            if args.check:
                return direct_sets.check(one, args.data)
            return f"{one.title} is in {printable(direct_sets.get(one, args.data, args.base_url))}"

        failed = _each(script, parser, args.names, {one.name: one for one in sets}, work)
    raise SystemExit(failed)


def get_restoration(script: str, description: str | None, sets: Sequence[RestorationSet]) -> None:
    """The whole of the script that takes in sets behind pages, forms and drives."""
    parser = _get_parser(description, [one.name for one in sets])
    parser.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        default=[],
        metavar="ARCHIVE",
        help="unpack these zip or tar files for the one set that is named, each as SPLIT=ARCHIVE where the set has "
        "several splits; an address instead of a file is downloaded first",
    )
    parser.add_argument(
        "--lists",
        type=Path,
        metavar="FOLDER",
        help="write the lists of all named sets together to FOLDER/meta/, in the place of those there, to train on "
        "them as one (default: each set's in a folder of its name)",
    )
    parser.add_argument(
        "--sample",
        type=whole(1),
        metavar="N",
        help="of the pairs that --lists joins, draw N of each weather to train on, always the same ones, and N / 10 to "
        "validate with",
    )
    args = parser.parse_args()
    with _plain_errors(script):
        if args.list:
            for one in sets:
                known = {split: part.counts[0][0] for split, part in one.parts.items() if part.counts}
                size = ", ".join(f"{count:,} {split}" for split, count in known.items())
                pairs = f"{size} pairs" if size else "unknown"
                print(_entry(one.name, one.title, one.weather, pairs, one.licence, one.used))
            return
        if args.sources and (len(args.names) != 1 or args.check):
            raise InputError("--from was given; wanted with it: one set, and no --check.")
        if args.sample is not None and (args.lists is None or args.check):
            raise InputError("--sample was given; wanted with it: --lists FOLDER, and no --check.")
        found: dict[str, restoration_sets.Found] = {}

        def work(one: RestorationSet) -> str:
            found[one.name] = _verified(one, args) if args.check else _listed(one, args)
            return _report(one, found[one.name])

        failed = _each(script, parser, args.names, {one.name: one for one in sets}, work)
        if args.lists is not None and not args.check:
            if missing := [name for name in args.names if name not in found]:
                raise InputError(
                    f"no lists are written to {printable(args.lists)}, as these sets cannot be listed: "
                    f"{few(missing)}. Get them, or leave them out."
                )
            together = restoration_sets.joined(found.values())
            if args.sample is not None:
                together = restoration_sets.drawn(together, args.sample)
            restoration_sets.write_lists(args.lists, together)
            print(". ".join([f"{printable(args.lists)}: {_counts(together)} pairs", *together.left_out]))
    raise SystemExit(failed)


def _verified(wanted: RestorationSet, args: argparse.Namespace) -> restoration_sets.Found:
    folder = restoration_sets.folder_of(wanted, args.data)
    changes = differences(folder)
    if any(changes):
        raise InputError(f"{wanted.title} in {printable(folder)}: {changes}. Put those files there again.")
    return restoration_sets.find(wanted, args.data)


def _listed(wanted: RestorationSet, args: argparse.Namespace) -> restoration_sets.Found:
    _take_in(wanted, args.data, args.sources)
    pairs = restoration_sets.find(wanted, args.data)
    if args.lists is None:
        restoration_sets.write_lists(args.data / wanted.name, pairs)
    return pairs


def _report(wanted: RestorationSet, found: restoration_sets.Found) -> str:
    report = ". ".join([f"{wanted.title}: {_counts(found)} pairs", *found.left_out, *found.odd])
    if found.odd:
        raise InputError(report)
    return report


def _counts(found: restoration_sets.Found) -> str:
    return ", ".join(f"{len(pairs):,} {split}" for split, pairs in found.pairs.items())


def _take_in(wanted: RestorationSet, data: Path, sources: Sequence[str]) -> None:
    by_split: dict[str, list[str]] = {}
    for source in sources:
        first, _, rest = source.partition("=")
        if len(wanted.parts) == 1 and first not in wanted.parts:
            first, rest = next(iter(wanted.parts)), source
        by_split.setdefault(first, []).append(rest)
    restoration_sets.take_in(wanted, data, by_split)


def _get_parser(description: str | None, names: Sequence[str]) -> argparse.ArgumentParser:
    parser = parser_of(description)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of: {', '.join(names)}")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), metavar="FOLDER", help="where sets are kept (default: %(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="show what there is: task, size, licence, where it is used")
    parser.add_argument(
        "--check", action="store_true", help="get nothing: verify what is on disk, by hashes, layout and number"
    )
    return parser


def _entry(name: str, title: str, task: str, size: str, licence: str, used: str) -> str:
    return f"{name:<17} {title}: {task}; {size}; licence: {licence}\n{'':<17} for {used}"


def _each(
    script: str, parser: argparse.ArgumentParser, names: Sequence[str], known: Mapping[str, T], work: Callable[[T], str]
) -> bool:
    """Do the work for every name and say whether any failed; one that does is told, and the others are done."""
    if not names:
        parser.error(f"say which: {', '.join(known)}; or --list")
    for name in names:
        if name not in known:
            raise InputError(unknown("set", name, known))
    failed = False
    for name in names:
        try:
            print(work(known[name]))
        except InputError as error:
            print(f"{script}: {error}", file=sys.stderr)
            failed = True
    return failed
