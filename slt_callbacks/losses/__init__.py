"""Loss functions, and the losses of samples where the weights stand.

What may be given as a loss
---------------------------

A function ``(module, batch) -> losses``, one a sample, one a token, or a scalar. It gets a private copy of the module:
use its argument, not the module in your closure. None is the module's ``per_sample_loss(batch)``, or else its
`training_step`, muted.

* **A `training_step`** may read its trainer (``self.global_step``, ``self.current_epoch``, learning rates,
  ``self.trainer.datamodule``): a stand-in gives the live values. What it tells a logger or the progress bar reaches
  nobody. An optimizer's step, a manual backward pass or a change of your objects is refused before training. A module
  that reads from an iterator of its own wants a `loss_fn`.
* **Transfer hooks.** `on_before_batch_transfer`, `transfer_batch_to_device` and `on_after_batch_transfer`, of the
  module or the data module, are applied to the reference samples and queries, with a `loss_fn` of your own too: do not
  normalize twice.
* **Random numbers.** A loss may draw some (a variational autoencoder, diffusion, masking), from the global generators
  or from one that the module or the loss function holds: the same samples meet the same numbers at w* and along the
  chains, so that noise is not taken for learning. With minibatches each batch has its own noise, and each draw costs
  one more forward pass. Over the whole set the noise is fixed, and part of the loss that is measured: prefer
  ``SamplerConfig(batch_size=...)``.
* **Contrastive losses.** A loss that compares the samples of a batch depends on how many there are. It is taken in
  batches of `block_size`, else `batch_size`, else that of training where it is known. A loss kernel and influences,
  which are about single samples, say little of it, and you are told so.
* **Summed losses.** A scalar that is the sum over the samples is told from a mean and divided by their number, with a
  warning. For a sum divided by a constant of your own return the mean, or one loss a sample.
"""
