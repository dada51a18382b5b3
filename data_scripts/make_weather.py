"""Write the built-in pairs of clean images with haze, rain and snow to disk, for programs that read files.

    python data_scripts/make_weather.py data/weather                         # 24 variants of 8 photographs to train on
    python data_scripts/make_weather.py data/weather --variants 4 --seed 1
    python data_scripts/make_weather.py data/weather --check                 # are they still as they were written?

Haze lies as the RESIDE set has it, rain as Rain1400 and snow as Snow100K. The same numbers give the same files, which
`kdlab teach data/weather --task restoration --weather haze` reads.
"""

from kdlab.commands.data_scripts import add_folder, make, parser_of
from kdlab.commands.options import whole
from kdlab.data.weather_files import write_weather
from kdlab.data.weather_photos import VARIANTS


def main() -> None:
    parser = parser_of(__doc__)
    add_folder(parser)
    parser.add_argument(
        "--variants",
        type=whole(1),
        default=VARIANTS["train"],
        help="of each training photograph in each weather (default: %(default)s)",
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="another one, other weather (default: %(default)s)")
    args = parser.parse_args()
    make("make_weather", args, lambda: write_weather(args.folder, args.variants, args.seed))


if __name__ == "__main__":
    main()
