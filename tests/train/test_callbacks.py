import torch

from vitq.train import Callback, fit


class Witness(Callback):
    """Writes down which hook was called at which step."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def _note(self, hook, state):
        self.calls.append((self.name, hook, state.step))

    def on_start(self, state):
        self._note("on_start", state)

    def loss(self, state):
        self._note("loss", state)
        assert all(p.grad is None for p in state.model.parameters())

    def after_backward(self, state):
        self._note("after_backward", state)
        assert all(p.grad is not None for p in state.model.parameters())

    def after_step(self, state):
        self._note("after_step", state)

    def before_evaluation(self, state):
        self._note("before_evaluation", state)


def test_hooks_run_once_per_optimizer_step_in_the_order_given(data, make_network, config):
    calls = []
    fit(make_network(), data, config(steps=2, evaluate_every=1), callbacks=[Witness("a", calls), Witness("b", calls)])
    expected = [("on_start", 0), ("loss", 0), ("after_backward", 0), ("after_step", 1), ("before_evaluation", 1),
                ("loss", 1), ("after_backward", 1), ("after_step", 2), ("before_evaluation", 2)]
    assert calls == [(name, hook, step) for hook, step in expected for name in "ab"]


def test_the_loss_term_is_added_once_however_the_batch_is_cut(data, make_network, config):
    class Pull(Callback):
        def loss(self, state):
            return 3.0 * state.model[0].bias.sum()

        def after_backward(self, state):
            self.gradient = state.model[0].bias.grad.clone()

    gradients = []
    for strength, parts in ((True, 1), (True, 4), (False, 1)):
        pull = Pull()
        if not strength:
            pull.loss = lambda state: None
        fit(make_network(norm=False), data, config(steps=1, accumulation=parts), callbacks=[pull])
        gradients.append(pull.gradient)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
    assert torch.allclose(gradients[0] - gradients[2], torch.full((8,), 3.0), atol=1e-6)


def test_state_gives_batches_apart_from_the_training_order(data, make_network, config, digest_of):
    class Reader(Callback):
        def after_step(self, state):
            images, labels = next(iter(state.batches()))
            assert images.shape == (16, 3, 8, 8) and labels.shape == (16,)

    digests = []
    for callbacks in ([], [Reader()]):
        net = make_network(dropout=0.3)
        fit(net, data, config(), callbacks=callbacks)
        digests.append(digest_of(net))
    assert digests[0] == digests[1]
