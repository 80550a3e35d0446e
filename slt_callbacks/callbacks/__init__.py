"""The callback, and all that only a Trainer can tell. The only floor that imports lightning.

What training may rely on while `SLTMonitor` measures
-----------------------------------------------------

With and without the monitor these are bit-identical: weights, buffers, optimizer and scheduler state, the metrics in
the loggers, the order of the batches, and the state of the torch, numpy and Python generators. ``make matrix`` trains
every case of `tests/passivity/cases.py` twice and compares. A Trainer of the package `pytorch_lightning` serves as
well.

How: parameters and buffers are copied into a private fork, half precision is sampled in float32, every chain has its
own generator, and whatever a measurement calls, loss functions and plug-ins included, runs with the global generators
set aside. Data sets, loaders and DataModules that a module holds are shared with its fork, for they are only read;
lists, metrics and counters are copied, and every chain begins with them as they were at the fork.

**What goes wrong costs a measurement.** One that fails, whatever it raises, is one warning, a row of NaN and one more
in ``slt/cost/failed``, and training goes on. Nor does a full disk, a W&B run that has ended, or a reaction that raises
end it. A chain whose loss is not finite, or finite beyond any sense, is dropped from every result and
counted. Where memory runs out a measurement is tried again in smaller blocks, first of the size of a training batch and
then of half, until one fits.

**Several processes.** Under DDP the chains are split over the ranks, from rank 0's buffers, and the numbers are those
of one process with the same seed. So they are under FSDP2 (`ModelParallelStrategy` with `fully_shard` in the module's
`configure_model`) where every rank gathers a whole copy; or else the chains run on the shards, of which
``help("slt_callbacks.measuring.sharding")`` tells. FSDP1, DeepSpeed, XLA and tensor parallelism are refused before
training.

**A resume** goes on as if the run had not stopped: same steps, same chains, same numbers, no event twice. With
`checkpoint_chains=False` checkpoints hold no chains, and these burn in again.

**Limits.** Beyond protection is a loss function, forward hook or plug-in that writes to objects it has brought along
itself: the live module in its closure, a file. So are generators out of reach (in C code, in other processes), and
objects that refuse to be copied, which are shared one by one. With `loss_fn` frozen parameters are shared with the
fork, for the memory's sake: it must not write to them. A schedule has to answer alike on all ranks. The time that
measuring takes is real: whatever ends a run by the clock, such as ``Trainer(max_time=...)``, sees it. On a GPU the
matrix is run with deterministic algorithms, and without the three runs that are started otherwise (``make matrix
ARGS="--accelerator gpu"``); on one NVIDIA H200 57 of 57 cases were bit-identical.
"""
