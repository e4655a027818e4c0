"""The loop by itself, on problems whose course is known."""

import pytest
import torch

from models.nvdiffrec.descent import Descent
from schemas.errors import ModelError


def quiet(fraction, message, metrics):
    pass


def descent(errors, iterations=300, round_steps=1):
    """A descent whose error at each step is given by `errors(step)`."""
    weight = torch.zeros(1, requires_grad=True)
    loop = Descent(torch.optim.Adam([weight], lr=1e-3), iterations, (1.0, 0.1), round_steps)

    def step(done):
        error = torch.tensor(float(errors(done)))
        return weight.sum() * 0 + error, error

    return loop, step


def test_a_settled_descent_stops_and_one_that_improves_does_not():
    loop, step = descent(lambda done: 1e-3)
    loop.run(step, name="test", callback=quiet)
    assert 0 < loop.done < 300
    loop, step = descent(lambda done: 10 ** (-2 - done / 300))
    loop.run(step, name="test", callback=quiet)
    assert loop.done == 300


def test_batches_of_unlike_views_do_not_look_settled():
    # A single easy batch early on once ended the run: each entry must stand for all views.
    loop, step = descent(lambda done: (1e-5 if done % 30 == 0 else 1e-2) * 0.995**done, round_steps=30)
    loop.run(step, name="test", callback=quiet)
    assert loop.done == 300


def test_too_few_steps_to_see_every_view_twice_never_settle():
    loop, step = descent(lambda done: 1e-3, round_steps=100)
    loop.run(step, name="test", callback=quiet)
    assert loop.done == 300


def test_a_descent_that_had_settled_stays_so_when_it_is_taken_up_again():
    loop, step = descent(lambda done: 1e-3)
    loop.run(step, name="test", callback=quiet)
    again, step = descent(lambda done: 1e-3)
    again.restore(loop.state())
    again.run(step, name="test", callback=quiet)
    assert again.done == loop.done
    assert again.curve == loop.curve


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_error_or_a_loss_that_is_not_finite_is_a_divergence(bad):
    loop, step = descent(lambda done: bad if done == 40 else 1e-3)
    with pytest.raises(ModelError, match="diverged") as error:
        loop.run(step, name="test", callback=quiet)
    assert error.value.code == "MODEL_DIVERGED"


def test_the_callback_hears_of_the_end_once_it_is_reached():
    seen = []
    loop, step = descent(lambda done: 1e-3)
    loop.run(step, name="test", callback=lambda fraction, message, metrics: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
