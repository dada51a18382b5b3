"""Write the built-in digits to disk, a folder for each class, for programs that read files.

    python data_scripts/make_digits.py data/digits            # 1,200 images in train, 199 in val, 398 in test
    python data_scripts/make_digits.py data/digits --check    # are they still as they were written?

They are 8x8 and grey, as they come, in the same splits as `kdlab teach digits` has them. Nothing in them is drawn at
random: every run writes the same files. `kdlab teach data/digits --image-size 32` reads them.
"""

from kdlab.commands.data_scripts import add_folder, make, parser_of
from kdlab.data.class_folders import write_digits


def main() -> None:
    parser = parser_of(__doc__)
    add_folder(parser)
    args = parser.parse_args()
    make("make_digits", args, lambda: write_digits(args.folder))


if __name__ == "__main__":
    main()
