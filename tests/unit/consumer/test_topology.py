"""The broker's objects, as the message reference names them."""

from __future__ import annotations

from consumer.settings import Settings
from consumer.topology import CONSUMER_TIMEOUT_MS, Topology
from schemas.jobs import BaseJob


def test_names_are_those_of_the_message_reference():
    topology = Topology()
    assert {(each.name, each.kind) for each in topology.exchanges()} == {
        ("recon.jobs", "topic"),
        ("recon.status", "fanout"),
    }
    assert {each.name for each in topology.queues()} == {
        "recon.jobs.nvdiffrec",
        "recon.jobs.reconviagen",
        "recon.jobs.dead",
        "recon.control",
    }


def test_every_queue_is_a_quorum_queue():
    assert all(("x-queue-type", "quorum") in each.arguments for each in Topology().queues())


def test_job_queues_dead_letter_and_are_bound_by_model():
    jobs = [each for each in Topology(delivery_limit=9).queues() if each.routing_key]
    assert {each.routing_key for each in jobs} == {"job.nvdiffrec", "job.reconviagen"}
    for each in jobs:
        arguments = dict(each.arguments)
        assert arguments["x-delivery-limit"] == 9
        assert arguments["x-dead-letter-exchange"] == ""
        assert arguments["x-dead-letter-routing-key"] == "recon.jobs.dead"


def test_a_job_may_run_to_its_limit_before_the_broker_takes_it_away():
    longest = next(m.le for m in BaseJob.model_fields["time_limit_s"].metadata if hasattr(m, "le"))
    assert longest * 1000 < CONSUMER_TIMEOUT_MS


def test_all_names_are_settings():
    settings = Settings(
        jobs_exchange="a", status_exchange="b", dead_queue="c", control_queue="d", delivery_limit=3
    )
    assert settings.topology() == Topology("a", "b", "c", "d", 3)
    assert settings.topology().job_queue("nvdiffrec") == "a.nvdiffrec"
