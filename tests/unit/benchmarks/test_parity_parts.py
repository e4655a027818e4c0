import pytest
import torch
from torch import nn

from benchmarks.parity.__main__ import errors_table
from benchmarks.parity.compare import Row, relative_error
from benchmarks.parity.configurations import load_configurations
from benchmarks.parity.surfaces import differing, partners
from benchmarks.parity.weights import differences, randomize, renamed
from benchmarks.voxels import bumpy_distance, bumpy_shell
from models.reconviagen.renaming import SAME, Renaming


class Scaled(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)
        self.gamma = nn.Parameter(torch.zeros(2))


def test_random_weights_depend_on_names_and_leave_nothing_at_zero():
    one, two = Scaled(), nn.Sequential(Scaled())
    randomize(one)
    randomize(two[0])
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, two[0].get_parameter(name))
        assert (parameter != 0).all()
    assert (one.gamma - 1).abs().max() < 0.6
    randomize(two)  # "0.weight" instead of "weight"
    assert not torch.equal(one.weight, two[0].weight)


def test_differences_name_what_only_one_side_has_and_other_shapes():
    theirs, ours = nn.Linear(3, 2), nn.Linear(4, 2, bias=False)
    assert differences(theirs, theirs, SAME) == []
    found = differences(theirs, ours, SAME)
    assert found == ["only upstream has bias (2,)", "weight: upstream (2, 3), ours (2, 4)"]


def test_joined_tensors_are_one_behind_the_other():
    renaming = Renaming(joined=((("a", "b"), "c"),))
    found = renamed({"b": torch.tensor([2.0]), "a": torch.tensor([1.0])}, renaming)
    assert found["c"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("found", "error"),
    [([1.0, 2.0], 0.0), ([1.0, 2.2], 0.1), ([1.0, float("nan")], float("inf")), ([1.0], float("inf"))],
)
def test_relative_error(found, error):
    assert relative_error(torch.tensor(found), torch.tensor([1.0, 2.0])) == pytest.approx(error)
    assert Row("a", "b", "half", error, None, 0.2).passed == (error < 0.2)


def test_small_configurations_change_sizes_and_keep_the_rest():
    small, published = load_configurations("mini"), load_configurations("published")
    assert small.keys() == published.keys()
    assert small["latent_flow"]["args"]["num_blocks"] < published["latent_flow"]["args"]["num_blocks"]
    for name, configuration in small.items():
        assert configuration.keys() == published[name].keys()
        assert configuration.get("args", {}).keys() == published[name].get("args", {}).keys()


def test_faces_differ_by_winding_and_diagonal_not_by_order():
    quad = torch.tensor([[0, 1, 2], [0, 2, 3]])
    assert differing(quad, torch.tensor([[2, 3, 0], [1, 2, 0]])) == 0
    assert differing(quad, quad.flip(1)) == 1
    assert differing(quad, torch.tensor([[0, 1, 3], [1, 2, 3]])) == 1


def test_partners_are_the_nearest():
    ours = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    distance, index = partners(ours, torch.tensor([[1.0, 0, 0.25], [0, 0, 0]]))
    assert (distance, index.tolist()) == (0.25, [1, 0])


def test_shell_lies_at_its_surface():
    coords = bumpy_shell(64)
    assert 15_000 < len(coords) < 25_000
    assert bumpy_distance((coords + 0.5) / 64 - 0.5).abs().max() < 2 / 64


def test_table_puts_precisions_side_by_side_and_marks_what_is_too_far():
    rows = [
        Row("flow", "velocity", "float32", 1e-6, None, 1e-4),
        Row("flow", "velocity", "half", 3e-2, 2e-3, 2e-2),
        Row("sampler", "sample", "float32", 0.0, None, 1e-4),
    ]
    assert errors_table(rows).splitlines()[2:] == [
        "| flow | velocity | 1.0e-06 | 3.0e-02 | 2.0e-03 | **too far** |",
        "| sampler | sample | 0.0e+00 |  |  | ok |",
    ]
