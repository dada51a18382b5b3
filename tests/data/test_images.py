"""Every odd picture file that people have: seen as a person sees it, or named and refused."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kdlab.data.images import Skipped, files_under, find_images, open_image, printable, try_open
from kdlab.errors import InputError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def noise(height=64, width=64, channels=3):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8))


def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


# --- modes: what the pixels must be -----------------------------------------------------------------------------------


def test_rgb_comes_back_as_it_was(tmp_path):
    image = noise()
    assert np.array_equal(open_image(saved(image, tmp_path / "a.png")), image)


def test_grey_becomes_three_equal_channels(tmp_path):
    image = open_image(saved(Image.new("L", (3, 2), 77), tmp_path / "a.png"))
    assert (image.mode, image.size, image.getpixel((2, 1))) == ("RGB", (3, 2), (77, 77, 77))


def test_one_bit(tmp_path):
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    image = open_image(saved(image, tmp_path / "a.png"))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), WHITE]


def test_palette(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    image = open_image(saved(image, tmp_path / "a.png"))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [RED, GREEN]


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])], ids=["one index", "alpha for each index"])
def test_palette_with_transparency_is_laid_on_white(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    image = open_image(saved(image, tmp_path / "a.png", transparency=transparency))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [WHITE, GREEN]


@pytest.mark.parametrize(
    ("mode", "pixel", "seen"),
    [
        ("RGBA", (0, 0, 0, 0), 255),
        ("RGBA", (0, 0, 0, 255), 0),
        ("RGBA", (0, 0, 0, 128), 127),
        ("LA", (0, 0), 255),
        ("LA", (100, 255), 100),
    ],
)
def test_transparency_shows_white_through(tmp_path, mode, pixel, seen):
    image = open_image(saved(Image.new(mode, (2, 2), pixel), tmp_path / "a.png"))
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == pytest.approx((seen,) * 3, abs=1)


@pytest.mark.parametrize(("mode", "colour"), [("RGB", RED), ("L", 9)])
def test_a_colour_declared_transparent_is_white(tmp_path, mode, colour):
    path = saved(Image.new(mode, (2, 2), colour), tmp_path / "a.png", transparency=colour)
    assert open_image(path).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, name):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = open_image(saved(Image.fromarray(ramp), tmp_path / name))
    assert np.array_equal(np.asarray(image)[..., 0].ravel(), np.arange(256))


def test_16_bit_mid_grey_is_mid_grey_alone_too(tmp_path):
    path = saved(Image.fromarray(np.full((4, 4), 32768, np.uint16)), tmp_path / "a.png")
    assert open_image(path).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.25, np.nan, np.inf]], np.float32), [64, 0, 0]),
        (np.array([[-3.0, -3.0, -3.0]], np.float32), [0, 0, 0]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 500_000, 1_000_000]], np.int32), [0, 128, 255]),
    ],
    ids=["0 to 1", "0 to 255", "own range", "not finite", "constant", "int 0 to 255", "int own range"],
)
def test_floats_and_long_integers_are_scaled(tmp_path, values, seen):
    image = open_image(saved(Image.fromarray(values), tmp_path / "a.tiff"))
    assert np.asarray(image)[0, :, 0].tolist() == seen


def test_cmyk_jpeg(tmp_path):
    cyan = open_image(saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), tmp_path / "a.jpg"))
    assert cyan.getpixel((4, 4)) == pytest.approx((0, 255, 255), abs=4)


def test_the_cameras_rotation_is_applied(tmp_path):
    stored = Image.new("RGB", (32, 16), BLUE)
    stored.paste(RED, (0, 0, 16, 16))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn a quarter clockwise to look at it": left goes to the top
    for name in ("a.jpg", "a.png", "a.webp", "a.tiff"):
        seen = open_image(saved(stored, tmp_path / name, exif=exif))
        assert seen.size == (16, 32), name
        assert seen.getpixel((8, 4)) == pytest.approx(RED, abs=60), name
        assert seen.getpixel((8, 28)) == pytest.approx(BLUE, abs=60), name


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_camera_data_does_not_cost_the_picture(tmp_path):
    path = saved(Image.new("RGB", (4, 2), RED), tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert open_image(path).size == (4, 2)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tiff"])
def test_an_animation_gives_its_first_frame(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / name).getpixel((4, 4)) == pytest.approx(RED, abs=8)


def test_one_pixel_is_an_image(tmp_path):
    assert open_image(saved(Image.new("RGB", (1, 1), RED), tmp_path / "a.png")).getpixel((0, 0)) == RED


@pytest.mark.parametrize("name", ["two words.png", "猫-été.png", "no_suffix"])
def test_any_name_will_do(tmp_path, name):
    saved(Image.new("RGB", (2, 2), RED), tmp_path / name, format="PNG")
    assert open_image(str(tmp_path / name)).getpixel((0, 0)) == RED


def test_the_file_is_closed_again(tmp_path):
    good = saved(noise(), tmp_path / "good.png")
    bad = cut(saved(noise(), tmp_path / "bad.png"))
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("open files can be counted on Linux only")
    before = len(os.listdir("/proc/self/fd"))
    kept = [open_image(good) for _ in range(10)], [try_open(bad) for _ in range(10)]
    assert len(os.listdir("/proc/self/fd")) == before
    kept[0][0].load()


# --- what cannot be used ----------------------------------------------------------------------------------------------


def refused(path, reason):
    with pytest.raises(InputError, match=reason) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    assert isinstance(try_open(path), Skipped)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tiff"])
@pytest.mark.parametrize("share", [0.05, 0.6, 0.98])
def test_cut_short(tmp_path, name, share):
    refused(cut(saved(noise(), tmp_path / name), share), "damaged, cut short|not an image")


def test_damaged_in_the_middle(tmp_path):
    path = saved(noise(), tmp_path / "a.png")
    content = bytearray(path.read_bytes())
    content[2000:3000] = bytes(1000)
    path.write_bytes(content)
    refused(path, "damaged, cut short")


def test_no_bytes(tmp_path):
    (tmp_path / "a.png").touch()
    refused(tmp_path / "a.png", "empty file")


@pytest.mark.parametrize("name", ["a.jpg", "notes"])
def test_text(tmp_path, name):
    (tmp_path / name).write_text("shopping: milk, bread")
    refused(tmp_path / name, "not an image")


def test_a_folder_that_is_called_like_an_image(tmp_path):
    (tmp_path / "x.png").mkdir()
    refused(tmp_path / "x.png", "a folder")


def test_no_such_file(tmp_path):
    refused(tmp_path / "nothing.png", "no such file")
    (tmp_path / "link.png").symlink_to("nothing.png")
    refused(tmp_path / "link.png", "no such file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    refused(tmp_path / "a.png", "not a regular file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    path = saved(noise(), tmp_path / "a.png")
    path.chmod(0)
    refused(path, "no permission")


def test_a_decompression_bomb(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    refused(tmp_path / "a.png", "too many pixels")


def test_a_name_that_is_no_text_can_still_be_printed(tmp_path):
    path = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.jpg")
    try:
        with open(path, "w") as file:
            file.write("text")
    except OSError:
        pytest.skip("this file system takes only names that are text")
    assert printable(path).encode().endswith(b"caf?.jpg")
    with pytest.raises(InputError) as caught:
        open_image(path)
    assert "caf?.jpg" in str(caught.value).encode().decode()


# --- finding images ---------------------------------------------------------------------------------------------------


def test_folders_are_searched_to_their_depth_in_order(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "x.png").mkdir()
    wanted = [
        saved(noise(), tmp_path / name, format="PNG")
        for name in ("a.png", "b/deep/é è.png", "b/no_suffix", "c.JPG", "x.png/in.png")
    ]
    (tmp_path / ".hidden").mkdir()
    for hidden in (".hidden/a.png", "b/.a.png"):
        saved(noise(), tmp_path / hidden)
    (tmp_path / "Thumbs.db").write_text("no picture")
    (tmp_path / "b" / "empty.jpg").touch()
    images, skipped = find_images([tmp_path])
    assert images == wanted
    assert [(one.path.name, one.reason) for one in skipped] == [
        ("Thumbs.db", "not an image, or of a kind that Pillow cannot read"),
        ("empty.jpg", "an empty file (zero bytes)"),
    ]


def test_files_and_folders_together_each_image_once(tmp_path):
    (tmp_path / "f").mkdir()
    inside, alone = saved(noise(), tmp_path / "f" / "z.png"), saved(noise(), tmp_path / "a.png")
    (tmp_path / "text.jpg").write_text("text")
    images, skipped = find_images([tmp_path / "f", str(alone), inside, tmp_path / "text.jpg"])
    assert images == [inside, alone]
    assert [str(one) for one in skipped] == [
        f"{tmp_path / 'text.jpg'}: not an image, or of a kind that Pillow cannot read"
    ]


def test_links_are_followed_and_never_in_a_circle(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "elsewhere").mkdir()
    saved(noise(), tmp_path / "elsewhere" / "a.png")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "up").symlink_to(tmp_path / "photos")
    assert find_images([tmp_path / "photos"])[0] == [tmp_path / "photos" / "link" / "a.png"]


def test_a_link_to_a_folder_around_or_apart_is_named_and_not_followed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        saved(noise(), tmp_path / name / "0.png")
    for target in ("..", "../b"):
        link = tmp_path / "a" / f"to {target}".replace("/", " ")
        link.symlink_to(target)
        files, left_out = files_under(tmp_path / "a", [tmp_path / "a", tmp_path / "b"])
        assert files == [tmp_path / "a" / "0.png"]
        assert [str(one) for one in left_out] == [f"{link}: a link to a folder around or beside this one, not followed"]
        link.unlink()
    (tmp_path / "a" / "up").symlink_to("..")
    assert [one.path.name for one in find_images([tmp_path / "a"])[1]] == ["up"]


def test_a_missing_path_is_named(tmp_path):
    good = saved(noise(), tmp_path / "a.png")
    with pytest.raises(InputError, match=r"no file or folder .*nowhere\.png"):
        find_images([good, tmp_path / "nowhere.png"])


def test_nothing_usable(tmp_path):
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(InputError, match=r"no usable image in .*files skipped: 1(.|\n)*a\.jpg: not an image"):
        find_images([tmp_path])
    with pytest.raises(InputError, match="no usable image in an empty list"):
        find_images([])
