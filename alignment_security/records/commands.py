"""Commands of utilities.py on archives: publish, verify."""

from __future__ import annotations

from pathlib import Path

from alignment_security.common.command_line import RESULTS_HELP, new_folder
from alignment_security.records.archive import publish, unpack, verify


def publish_command(args) -> None:
    count = publish(args.results_dir, args.out, args.licence, not args.without_csv)
    print(f"{args.out}: {count} files; check it with: python utilities.py verify {args.out}")


def verify_command(args) -> None:
    found = verify(args.archive)
    print("\n".join(found) or f"{args.archive}: as it was published, and nothing found")
    if found:
        raise SystemExit(1)
    if args.out:
        unpack(args.archive, args.out)
        print(f"{args.out}: its results folder")


def add_archive_commands(commands) -> None:
    publishing = commands.add_parser(
        "publish", help="an archive of a results folder: records, parquet, checksums, dataset card"
    )
    publishing.add_argument("--results_dir", type=Path, default=Path("results"), help=RESULTS_HELP)
    publishing.add_argument("--out", type=new_folder, required=True, help="the new folder")
    publishing.add_argument(
        "--licence", default="unknown", help="of the records, as the dataset card names it"
    )
    publishing.add_argument(
        "--without_csv",
        action="store_true",
        help="records as parquet alone, a tenth of the size; verify --out makes the CSV from them",
    )
    publishing.set_defaults(run=publish_command)

    verifying = commands.add_parser("verify", help="check an archive that publish wrote")
    verifying.add_argument("archive", type=Path, metavar="DIR", help="folder of the archive")
    verifying.add_argument(
        "--out",
        type=new_folder,
        help="write its results folder, records as CSV, to this new folder",
    )
    verifying.set_defaults(run=verify_command)
