"""The ledger: never more than the depth in flight, and only the oldest answer is believed."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from protocol.credit import CreditLedger, Verdict


@given(depth=st.integers(1, 4), moves=st.lists(st.booleans(), max_size=60))
def test_in_flight_stays_within_the_depth(depth: int, moves: list[bool]) -> None:
    ledger, model = CreditLedger(depth, epoch=3), list[int]()
    for send in moves:
        if send and ledger.available:
            model.append(ledger.send())
        elif not send and model:
            assert ledger.judge(3, model.pop(0)) is Verdict.EXPECTED
            ledger.answer()
        assert ledger.in_flight == len(model) and ledger.available == depth - len(model)
    sent = ledger.next_step
    for step_id in range(sent + 3):
        expected = Verdict.OUT_OF_ORDER
        if model and step_id == model[0]:
            expected = Verdict.EXPECTED
        elif step_id < sent - len(model):
            expected = Verdict.DUPLICATE
        assert ledger.judge(3, step_id) is expected
        assert ledger.judge(2, step_id) is Verdict.WRONG_EPOCH


def test_misuse_raises() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        CreditLedger(0, 0)
    ledger = CreditLedger(1, 0)
    with pytest.raises(RuntimeError, match="no step was in flight"):
        ledger.answer()
    ledger.send()
    with pytest.raises(RuntimeError, match="queue depth of 1"):
        ledger.send()
