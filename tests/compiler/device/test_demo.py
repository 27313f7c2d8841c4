"""The camera demo: the sensor's region of interest shows what the prompt protocol shows."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compiler.device.on_the_pi import demo
from compiler.device.on_the_pi.demo import Window
from compiler.device.on_the_pi.outputs import Facts, Input, Mask, Output, Problem
from student.crops import POINT_NATIVE_96, ROI_PAD10, window
from tests.compiler.device.chip_stand_in import install

SENSOR = (0, 0, 4056, 3040)
WHOLE = (2, 0, 4052, 3039)
"""A ScalerCrop of a 640x480 picture."""


def facts(protocol: str | None = "point-native-96", mask: bool = True) -> Facts:
    output = Output("logits", (1, 96, 96), ("C", "H", "W"), 0.125, 8, True)
    return Facts(
        "picosam2",
        protocol,
        Input("input", 3, 96, 96, True, "RGB"),
        (output,),
        ((0,),),
        Mask("logits", 0.0) if mask else None,
        "inputs.npz",
        (),
        None,
    )


@given(x=st.integers(0, 639), y=st.integers(0, 479))
def test_the_window_of_a_point_is_the_protocols(x, y):
    mask = np.zeros((480, 640), np.bool_)
    mask[y, x] = True
    place = window(POINT_NATIVE_96, mask)
    assert demo.point_window(x, y, 96) == Window(place.left, place.top, place.side)


@given(x=st.integers(0, 600), y=st.integers(0, 440), width=st.integers(1, 300), height=st.integers(1, 300))
def test_the_window_of_a_box_is_the_protocols(x, y, width, height):
    place = window(ROI_PAD10, np.ones((1, 1), np.bool_), (x, y, width, height))
    assert demo.box_window(x, y, x + width, y + height) == Window(place.left, place.top, place.side)


@given(x=st.floats(0, 639), y=st.floats(0, 479))
def test_a_window_at_the_edge_is_moved_inside_and_keeps_its_size(x, y):
    moved = demo.inside(demo.point_window(x, y, 96), 640, 480)
    assert moved.side == 96
    assert 0 <= moved.left <= 640 - 96
    assert 0 <= moved.top <= 480 - 96
    left, top, wide, high = demo.on_sensor(moved, (640, 480), WHOLE)
    assert left >= 0
    assert top >= 0
    assert left + wide <= SENSOR[2]
    assert top + high <= SENSOR[3]
    assert wide == pytest.approx(high, rel=0.01), "the crop stays square on the sensor"


def test_the_region_of_interest_of_the_middle():
    place = demo.prompt_window(facts(), None, None, 640, 480)
    assert place == Window(272, 192, 96)
    assert demo.on_sensor(place, (640, 480), WHOLE) == (1724, 1216, 608, 608)


def test_prompts_go_by_the_protocol_of_the_package():
    box = (100.0, 100.0, 200.0, 180.0)
    assert demo.prompt_window(facts("roi-pad10"), None, box, 640, 480).side == 120
    assert demo.prompt_window(facts(None), None, box, 640, 480).side == 120
    assert demo.prompt_window(facts("point-native-96"), None, box, 640, 480) == Window(102, 92, 96)
    with pytest.raises(Problem, match="--box"):
        demo.prompt_window(facts("roi-pad10"), (3.0, 4.0), None, 640, 480)
    with pytest.raises(Problem, match="a window of 720 pixels"):
        demo.prompt_window(facts(None), None, (0.0, 0.0, 600.0, 300.0), 640, 480)


def test_the_mask_is_drawn_where_the_network_looked():
    mask = np.zeros((96, 96), np.bool_)
    mask[48:, :] = True
    picture = np.full((480, 640, 3), 100, np.uint8)
    drawn = demo.painted(picture, mask, Window(300, 200, 192))
    changed = (drawn != picture).any(axis=2)
    assert changed[296 : 200 + 192, 300:492].all()  # the lower half, and the frame
    assert not changed[201:296, 301:491].any()
    assert not changed[:200].any()
    assert not changed[:, :300].any()
    assert (drawn[200, 300:492] == 255).all()


def test_a_network_without_a_mask_is_refused():
    with pytest.raises(Problem, match="no output is a mask"):
        demo.mask_in(facts(mask=False), (np.zeros((1, 96, 96), np.float32),))


class CameraStandIn:
    """picamera2's two objects, as far as the demo uses them: a mask of the left half, after two frames."""

    camera_num = 0

    def __init__(self, *arguments: object) -> None:
        self.frames, self.closed, self.config = 0, False, {}

    def show_network_fw_progress_bar(self) -> None: ...

    def set_inference_roi_abs(self, roi: tuple[int, int, int, int]) -> None:
        CameraStandIn.last_roi = roi
        self.config["roi"] = types.SimpleNamespace(
            **dict(zip(("x", "y", "width", "height"), roi, strict=True))
        )

    def get_outputs(self, metadata: dict[str, object]) -> list[np.ndarray] | None:
        if metadata["frame"] < demo.SETTLE + 3:
            return None
        values = np.full((1, 96, 96), -1.0, np.float32)
        values[:, :, :48] = 1.0
        return [values]

    def get_kpi_info(self, metadata: dict[str, object]) -> tuple[float, float]:
        return 14.25, 1.5

    def create_preview_configuration(self, **keywords: object) -> dict[str, object]:
        return keywords

    def start(self, configuration: dict[str, object], *, show_preview: bool) -> None:
        self.size = configuration["main"]["size"]

    def capture_metadata(self) -> dict[str, object]:
        self.frames += 1
        return {"ScalerCrop": WHOLE, "frame": self.frames}

    def capture_request(self) -> CameraStandIn:
        return self

    def get_metadata(self) -> dict[str, object]:
        return self.capture_metadata()

    def make_image(self, stream: str) -> Image.Image:
        return Image.new("RGB", self.size, (100, 100, 100))

    def release(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def network(monkeypatch, tmp_path) -> Path:
    """A network.rpk; the package's facts are `facts()`."""
    monkeypatch.setattr(demo, "read_facts", lambda folder: facts())
    path = tmp_path / "network.rpk"
    path.write_bytes(b"")
    return path


def test_the_demo_writes_pictures_with_masks(monkeypatch, network, tmp_path, capsys):
    install(monkeypatch, CameraStandIn, CameraStandIn)
    arguments = [str(network), "--point", "320,240", "--frames", "2", "--out", str(tmp_path / "out")]
    assert demo.main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0000.png", "0001.png"]
    assert CameraStandIn.last_roi == (1724, 1216, 608, 608)
    assert "50.0% of the window, network 14.25 ms, DSP 1.50 ms" in capsys.readouterr().out
    picture = np.asarray(Image.open(tmp_path / "out" / "0001.png"))
    assert (picture[240, 280] != 100).any()
    assert (picture[240, 360] == 100).all()


def problem(capsys, *arguments: object) -> str:
    """The one message that the demo ends with."""
    assert demo.main([str(one) for one in arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    return said


def test_a_camera_that_cannot_be_opened_is_one_message(monkeypatch, network, tmp_path, capsys):
    def refuses(*arguments: object) -> None:
        raise RuntimeError("Requested camera dev-node not found")

    install(monkeypatch, refuses, CameraStandIn)
    assert "dev-node not found" in problem(capsys, network)
    install(monkeypatch, CameraStandIn, refuses)
    assert "close other programs" in problem(capsys, network)
    missing = tmp_path / "missing.rpk"
    assert problem(capsys, missing).startswith(f"error: {missing}: no such file")


def test_a_camera_that_does_not_start_is_closed(monkeypatch, network, capsys):
    opened = []

    class Busy(CameraStandIn):
        def start(self, configuration: dict[str, object], *, show_preview: bool) -> None:
            opened.append(self)
            raise RuntimeError("Failed to start camera")

    install(monkeypatch, CameraStandIn, Busy)
    assert "Failed to start camera" in problem(capsys, network)
    assert [one.closed for one in opened] == [True]


@pytest.mark.parametrize("kept", [None, WHOLE], ids=["none", "that of the start"])
def test_a_region_that_the_driver_does_not_take_ends_the_demo(monkeypatch, network, tmp_path, capsys, kept):
    """picamera2 prints that, keeps the region before, and goes on."""

    class Deaf(CameraStandIn):
        def set_inference_roi_abs(self, roi: tuple[int, int, int, int]) -> None:
            if kept is not None:
                super().set_inference_roi_abs(kept)

    install(monkeypatch, Deaf, CameraStandIn)
    said = problem(capsys, network, "--out", tmp_path / "out")
    assert "region of interest: the driver's is" in said
    assert "[1724, 1216, 608, 608]" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, network, capsys):
    install(monkeypatch, CameraStandIn, CameraStandIn)
    assert "--out" in problem(capsys, network, "--out", network / "masks")
