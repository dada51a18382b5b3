"""The teacher and the student of response distillation: what they are made of, and where their weights come from."""

import hashlib
import http.server
import socket
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

from kdlab import InputError
from kdlab.models import BUILDERS, StudentCNN, build_model, densenet121

WEIGHTS = torchvision.models.DenseNet121_Weights.IMAGENET1K_V1
FILE = WEIGHTS.url.rpartition("/")[2]


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


# --- the student -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "count"), [(2, 422_530), (10, 423_562)])
def test_the_students_parameters(classes, count):
    assert parameters(StudentCNN(classes)) == count


def test_the_students_layers():
    widths = [3, 32, 64, 128, 256]
    student = StudentCNN(10)
    assert len(student.features) == 4
    for index, block in enumerate(student.features):
        convolution, norm, activation, pool = block
        assert isinstance(convolution, nn.Conv2d)
        assert (convolution.in_channels, convolution.out_channels) == (widths[index], widths[index + 1])
        assert (convolution.kernel_size, convolution.stride, convolution.padding) == ((3, 3), (1, 1), (1, 1))
        assert convolution.bias is not None
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(activation, nn.ReLU)
        if index < 3:
            assert isinstance(pool, nn.MaxPool2d)
            assert (pool.kernel_size, pool.stride) == (2, 2)
        else:
            assert isinstance(pool, nn.AdaptiveAvgPool2d)
            assert pool.output_size == 1
    first, activation, dropout, last = student.classifier
    assert (first.in_features, first.out_features, last.in_features, last.out_features) == (256, 128, 128, 10)
    assert isinstance(activation, nn.ReLU)
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.2


def test_its_widths_and_drop_rate_are_adjustable():
    student = StudentCNN(3, (8, 12, 16, 20), drop_rate=0.5)
    assert [block[0].out_channels for block in student.features] == [8, 12, 16, 20]
    assert student.classifier[0].out_features == 10
    assert student.classifier[2].p == 0.5


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (30, 45)])
def test_any_image_of_eight_pixels_or_more_gives_logits(size):
    logits = StudentCNN(5, (4, 4, 4, 4))(torch.randn(3, 3, *size))
    assert logits.shape == (3, 5)
    assert logits.min() < 0 < logits.max()  # logits, not probabilities


def test_dropout_only_while_training():
    student = StudentCNN(3, (4, 4, 4, 8), drop_rate=0.5)
    images = torch.randn(4, 3, 8, 8)
    assert not torch.equal(student(images), student(images))
    student.eval()
    assert torch.equal(student(images), student(images))


REFUSED = {
    "one class": (lambda: StudentCNN(1), "classes is 1; a classifier needs at least 2"),
    "three widths": (lambda: StudentCNN(2, (8, 8, 8)), r"widths is \(8, 8, 8\); wanted: the channels of four blocks"),
    "five widths": (lambda: StudentCNN(2, (8,) * 5), "channels of four blocks"),
    "no width": (lambda: StudentCNN(2, (8, 8, 8, 0)), "each at least 2"),
    "all dropped": (lambda: StudentCNN(2, drop_rate=1.0), "drop_rate is 1.0; wanted: from 0 to below 1"),
    "negative drop rate": (lambda: StudentCNN(2, drop_rate=-0.1), "drop_rate is -0.1"),
    "a drop rate that is no number": (lambda: StudentCNN(2, drop_rate=float("nan")), "drop_rate is nan"),
    "a teacher of one class": (lambda: densenet121(1), "classes is 1; a classifier needs at least 2"),
    "unknown weights": (lambda: densenet121(2, "cifar"), "weights is 'cifar'; wanted: 'auto', 'imagenet' or 'none'"),
    "an unknown architecture": (lambda: build_model({"name": "StudentCN"}), "Did you mean 'StudentCNN'"),
    "no architecture": (lambda: build_model({}), "unknown architecture 'None'"),
    "an unknown argument": (
        lambda: build_model({"name": "StudentCNN", "depth": 3}),
        "architecture 'StudentCNN' cannot be built from {'depth': 3}: .*depth",
    ),
    "a wrong argument": (lambda: build_model({"name": "StudentCNN", "classes": 0}), "classes is 0"),
}


@pytest.mark.parametrize(("build", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_built_is_refused(build, said, shapes_unchecked):
    with pytest.raises(InputError, match=said):
        build()


@pytest.mark.parametrize("build", [lambda: StudentCNN(7, (4, 6, 8, 10), drop_rate=0.1), lambda: densenet121(3)])
def test_the_architecture_builds_the_same_model_again(build):
    model = build()
    architecture = dict(model.architecture)
    again = build_model(architecture)
    assert architecture == model.architecture == again.architecture  # and it is not used up
    assert repr(again) == repr(model)
    again.load_state_dict(model.state_dict())


def test_the_builders_are_what_the_architectures_name():
    restorers = {"DehazingTeacher", "KTDN", "MSBDN", "SRKTDN"}
    cifar = {"CIFARResNet", "CIFARVGG", "WideResNet"}
    assert set(BUILDERS) == {*restorers, *cifar, "PSPNet", "StudentCNN", "UPerNet", "VGGReader", "densenet121"}


# --- the teacher -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "count"), [(2, 6_955_906), (1000, 7_978_856)])
def test_the_teachers_parameters(classes, count):
    assert parameters(densenet121(classes)) == count


def test_the_teacher_is_torchvisions_with_a_classifier_of_its_own():
    teacher = densenet121(4)
    assert isinstance(teacher, torchvision.models.DenseNet)
    assert isinstance(teacher.classifier, nn.Linear)
    assert teacher.weights_used == "none: a random start"
    with torch.no_grad():
        assert teacher.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 4)
    for tap in ("features.denseblock1", "features.denseblock4", "classifier"):
        teacher.get_submodule(tap)


# --- its weights -----------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with an empty torch cache that reaches nobody but itself, and notes who else was asked for."""
    asked = []
    find, connect = socket.getaddrinfo, socket.socket.connect

    def found(host, *arguments, **options):
        if host != "127.0.0.1":
            asked.append((host, socket.getdefaulttimeout()))
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return find(host, *arguments, **options)

    def connected(self, address):
        assert address[0] == "127.0.0.1", f"a connection to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setattr(socket.socket, "connect", connected)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return SimpleNamespace(cache=tmp_path / "torch" / "hub" / "checkpoints", asked=asked)


@pytest.fixture(scope="module")
def trained():
    """A state_dict that stands for ImageNet's."""
    torch.manual_seed(1)
    return {name: value.half() for name, value in torchvision.models.densenet121().state_dict().items()}


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    """The file on a server, named by its hash as torchvision's are."""
    path = tmp_path_factory.mktemp("server") / "weights.pth"
    torch.save(trained, path)
    content = path.read_bytes()
    return SimpleNamespace(content=content, name=f"densenet121-{hashlib.sha256(content).hexdigest()[:8]}.pth")


def has_the_features(model, trained):
    own = model.features.state_dict()
    return all(torch.equal(own[name], trained[f"features.{name}"].to(own[name].dtype)) for name in own)


def test_offline_auto_takes_a_random_start_and_says_so(machine):
    timeout = socket.getdefaulttimeout()
    teacher = densenet121(3, "auto")
    assert teacher.weights_used.startswith(
        "none: a random start, because the ImageNet weights could not be downloaded (<urlopen error"
    )
    assert teacher.classifier.out_features == 3
    ((host, patience),) = machine.asked
    assert host == "download.pytorch.org"
    assert 0 < patience <= 30  # seconds: a network that swallows packets is given up
    assert socket.getdefaulttimeout() == timeout


def test_offline_imagenet_is_an_error_that_says_what_to_do(machine):
    with pytest.raises(InputError, match=r"could not be downloaded \(.*Connect to the internet, or choose .*'none'"):
        densenet121(3, "imagenet")
    assert list(machine.cache.iterdir()) == []


def test_none_asks_nobody(machine):
    assert densenet121(3, "none").weights_used == "none: a random start"
    assert machine.asked == []
    assert not machine.cache.exists()


@pytest.mark.parametrize("choice", ["auto", "imagenet"])
def test_the_cached_weights_are_used_and_the_classifier_is_new(machine, trained, choice):
    machine.cache.mkdir(parents=True)
    torch.save(trained, machine.cache / FILE)
    teacher = densenet121(1000, choice)
    assert teacher.weights_used == "imagenet"
    assert machine.asked == []
    assert has_the_features(teacher, trained)
    assert not torch.equal(teacher.classifier.weight, trained["classifier.weight"].float())


def test_the_classifier_fits_the_classes(machine, trained):
    machine.cache.mkdir(parents=True)
    torch.save(trained, machine.cache / FILE)
    teacher = densenet121(3, "imagenet")
    assert parameters(teacher) == parameters(densenet121(3, "none"))
    assert teacher.architecture == {"name": "densenet121", "classes": 3}


BROKEN = {"zero bytes": b"", "text": b"<html>Please log in to this network</html>", "truncated": None}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_in_the_cache_is_no_traceback(machine, published, content):
    machine.cache.mkdir(parents=True)
    (machine.cache / FILE).write_bytes(published.content[:100_000] if content is None else content)
    assert densenet121(3, "auto").weights_used.startswith("none: a random start, because")
    with pytest.raises(InputError, match="ImageNet weights"):
        densenet121(3, "imagenet")


@contextmanager
def serving(answer):
    """A server on this machine; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            answer(self)
            self.close_connection = True

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def headers(handler, status=200, **fields):
    handler.send_response(status)
    for name, value in fields.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def whole(handler, content):
    headers(handler, Content_Length=len(content))
    handler.wfile.write(content)


def broken_off(handler, content):
    headers(handler, Content_Length=len(content))
    handler.wfile.write(content[: len(content) // 2])


def broken_off_in_a_chunk(handler, content):
    headers(handler, Transfer_Encoding="chunked")
    handler.wfile.write(b"%x\r\n" % len(content) + content[: len(content) // 2])


def reset(handler, content):
    broken_off(handler, content)
    handler.wfile.flush()
    linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # on, for 0 seconds: closing is then a reset
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()


def changed(handler, content):
    whole(handler, content[:-1] + bytes([content[-1] ^ 1]))


def forbidden(handler, content):
    headers(handler, 403, Content_Length=0)


def no_http(handler, content):
    handler.wfile.write(b"220 this is a mail server\r\n")


@pytest.fixture
def publish(machine, published, monkeypatch):
    """Have torchvision look for the weights on a server that answers so."""

    @contextmanager
    def at(answer):
        with serving(lambda handler: answer(handler, published.content)) as address:
            monkeypatch.setattr(WEIGHTS.value, "url", f"{address}/{published.name}")
            yield

    return at


def test_the_weights_are_downloaded_once(publish, machine, published, trained, capsys):
    with publish(whole):
        assert densenet121(3, "imagenet").weights_used == "imagenet"
    assert [path.name for path in machine.cache.iterdir()] == [published.name]
    again = densenet121(3, "auto")  # the server is gone
    assert again.weights_used == "imagenet"
    assert has_the_features(again, trained)


@pytest.mark.parametrize("answer", [broken_off, broken_off_in_a_chunk, reset, changed, forbidden, no_http])
def test_a_failed_download_leaves_nothing_and_auto_goes_on(publish, machine, capsys, answer):
    with publish(answer):
        assert densenet121(3, "auto").weights_used.startswith(
            "none: a random start, because the ImageNet weights could"
        )
        with pytest.raises(InputError, match="could not be downloaded"):
            densenet121(3, "imagenet")
    assert list(machine.cache.iterdir()) == []
