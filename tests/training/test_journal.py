"""The journal: what a worker reported is read by anybody, once, and in order, whatever died in between."""

from __future__ import annotations

import threading

from cloudai.artifacts.store import Store
from cloudai.training.journal import Journal, JournalReader


def values(reader, name="loss"):
    return {row.step: row.metrics[name] for row in reader.rows() if name in row.metrics}


def test_what_is_reported_is_read(tmp_path):
    store = Store(str(tmp_path))
    reader = JournalReader(store)
    assert (reader.status(), reader.rows(), reader.result(), reader.error()) == ({}, [], None, None)
    journal = Journal(store, 1, {"pid": 7})
    journal.add(1, {"loss": 3.0})
    journal.add(2, {"loss": 2.0})
    journal.add(2, {"accuracy": 0.5})
    journal.update(checkpoint=2)
    journal.close()
    assert values(reader) == {1: 3.0, 2: 2.0}
    assert values(reader, "accuracy") == {2: 0.5}
    status = reader.status()
    assert (status["pid"], status["step"], status["checkpoint"], status["attempt"]) == (7, 2, 2, 1)


def test_the_work_is_at_least_as_far_as_its_checkpoint(tmp_path):
    store = Store(str(tmp_path))
    journal = Journal(store, 1, {})
    journal.add(10, {"loss": 3.0})
    journal.checkpointed(14, 1.0)
    journal.flush()
    assert (JournalReader(store).status()["step"], JournalReader(store).status()["checkpoint"]) == (14, 14)
    journal.add(20, {"loss": 2.0})
    journal.checkpointed(17, 2.0)  # written beside the training, which went on
    journal.close()
    assert (JournalReader(store).status()["step"], JournalReader(store).status()["checkpoint"]) == (20, 17)


def test_a_later_attempt_overwrites_what_it_did_again(tmp_path):
    store = Store(str(tmp_path))
    for attempt, rows in ((1, {1: 5.0, 2: 4.0, 3: 9.0}), (2, {3: 3.0, 4: 2.0})):
        journal = Journal(store, attempt, {})
        for step, loss in rows.items():
            journal.add(step, {"loss": loss})
        journal.close()
    assert values(JournalReader(store)) == {1: 5.0, 2: 4.0, 3: 3.0, 4: 2.0}


def test_flushes_from_many_threads_lose_nothing(tmp_path):
    journal = Journal(Store(str(tmp_path)), 1, {})

    def report(first):
        for step in range(first, first + 25):
            journal.add(step, {"loss": float(step)})
            journal.flush()

    threads = [threading.Thread(target=report, args=(n * 25,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert values(JournalReader(Store(str(tmp_path)))) == {step: float(step) for step in range(100)}


class FailingStore(Store):
    """A store that fails for a while, as a network does."""

    fails = 0

    def write(self, key, data):
        if self.fails:
            self.fails -= 1
            raise OSError("the network is down")
        super().write(key, data)


def test_a_store_that_fails_for_a_while_loses_nothing(tmp_path, caplog):
    store = FailingStore(str(tmp_path))
    journal = Journal(store, 1, {})
    store.fails = 3
    journal.add(1, {"loss": 1.0})
    for _ in range(4):
        journal.flush()
    journal.add(2, {"loss": 0.5})
    journal.close()
    assert values(JournalReader(store)) == {1: 1.0, 2: 0.5}
    assert "trying again" in caplog.text
