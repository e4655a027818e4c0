import pytest

from benchmarks.reconstruction.baseline import FIGURES, find_baseline
from benchmarks.reconstruction.report import ALIGNED, markdown, report


def record(data="spot/orbit6", psnr=30.0, chamfer=0.005, *, seconds=10.0, raster="warp", **more):
    """A run as the benchmark records it."""
    baseline = FIGURES.get(data)
    images = {"psnr_db": psnr, "ssim": 0.9, "psnr_mask_db": 25.0, "ssim_mask": 0.8, "mask_iou": 0.97}
    return {
        "data": data,
        "options": {"preset": "standard", "raster": raster},
        "degradation": {},
        "device": "cpu",
        "raster": raster,
        "views": 6,
        "size": "512x512",
        "seconds": seconds,
        "stages": {"shape": 7.0, "texture": 3.0},
        "memory": {"host_mib": 900.0},
        "faces": 12345,
        "input": {**images, "psnr_db": 36.0},
        "test": {**images, "depth_error": 0.01},
        "surface": {"chamfer": chamfer, "f_score": 0.99, "normal_consistency": 0.98},
        "baseline": baseline and vars(baseline),
        **more,
    }


def tables(text):
    """Rows as dictionaries, by caption."""
    found = {}
    parts = text.split("\n\n")
    for caption, table in zip(parts[::2], parts[1::2], strict=True):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")]
        found[caption.split(".")[0].split(":")[0]] = [dict(zip(head, row, strict=True)) for row in rows]
    return found


def test_columns_without_any_figure_are_left_out():
    assert (
        markdown([{"a": "1", "b": ""}, {"a": "", "c": "2"}]) == "| a | c |\n| --- | --- |\n| 1 |  |\n|  | 2 |"
    )


def test_the_baseline_stands_beside_our_figures():
    (row,) = tables(report([record()]))["Baseline"]
    assert (row["test PSNR"], row["baseline's"], row["difference [dB]"]) == ("30.00", "26.80", "+3.20")
    assert (row["chamfer"], row["baseline's chamfer"], row["chamfer's difference"]) == (
        "0.0050",
        "0.0140",
        "-0.0090",
    )
    assert row["times faster"] == "25.5"


def test_means_are_taken_over_data_sets_of_the_same_options():
    records = [record(), record("bob/orbit6", 24.0, 0.011, seconds=14.0), record("bob/axis6", 27.0, 0.002)]
    (row,) = tables(report(records))["Means over data sets"]
    assert row["data"] == "3 inputs"
    assert (row["test PSNR, mean"], row["lowest"]) == ("27.00", "24.00")
    assert row["above the baseline [dB], mean"] == "+3.33"  # 3.20 and 3.46; bob/axis6 has no baseline
    assert row["least"] == "+3.20"
    assert (row["chamfer, mean"], row["highest"]) == ("0.0060", "0.0110")
    assert row["longest"] == "14.00"


def test_runs_of_other_options_or_inputs_are_not_averaged_together():
    others = [record(), record("bob/orbit6", degradation={"depth_holes": 0.3, "seed": 0})]
    assert "Means over data sets" not in tables(report(others))


def test_rasterizers_are_held_against_the_first():
    records = [record(), record(raster="nvdiffrast", seconds=8.0, psnr=30.25), record("duck/orbit6")]
    rows = tables(report(records))["Rasterizers beside the first one of the same input and options"]
    assert [(row["data"], row["raster"], row["beside"]) for row in rows] == [
        ("spot/orbit6", "nvdiffrast", "warp")
    ]
    assert (rows[0]["time"], rows[0]["test PSNR [dB]"], rows[0]["chamfer"]) == ("0.80x", "+0.25", "+0.0000")


def test_errors_of_cameras_and_the_alignment_are_told():
    noisy = record(
        degradation={"camera_noise_degrees": 0.5, "seed": 0},
        similarity={"scale": 1.01, "degrees": 0.2},
        pose_errors={
            "given": {"degrees": 0.5, "distance_share": 0.01},
            "refined": {"degrees": 0.05, "distance_share": 0.001},
        },
    )
    text = report([noisy])
    assert ALIGNED in text
    (row,) = tables(text)[ALIGNED.split(".")[0]]
    assert row["input made worse by"] == "camera_noise_degrees 0.5, seed 0"
    assert (row["given: turned by [degrees]"], row["refined: off by"]) == ("0.500", "0.100%")


def test_a_target_that_was_never_reached_is_said_to_be():
    timed = record(seconds_to_psnr={"30": None, "baseline": 1.5})
    (row,) = tables(report([timed]))["Time and memory"]
    assert (row["to 30 dB [s]"], row["to the baseline's PSNR [s]"]) == ("not reached", "1.50")


def test_refused_runs_are_listed_and_have_no_figures():
    failed = {
        "data": "spot/orbit6",
        "options": {},
        "degradation": {},
        "device": "cpu",
        "error": {"code": "INVALID_DEPTH", "message": "It contradicts."},
    }
    found = tables(report([failed]))
    assert list(found) == ["Refused or failed"]
    assert found["Refused or failed"][0]["code"] == "INVALID_DEPTH"


@pytest.mark.parametrize(("data", "size", "test_views"), [
    ("spot/views", (512, 512), 32), ("spot/orbit6", (128, 128), 32), ("spot/orbit6", (512, 512), 8),
])  # fmt: skip
def test_other_data_of_the_same_name_have_no_baseline(data, size, test_views):
    assert find_baseline(data, size, test_views) is None
    assert find_baseline("spot/orbit6", (512, 512), 32) == FIGURES["spot/orbit6"]
