"""Batches of any structure, and the fixed samples that every measurement looks at.

What may be given as a reference
--------------------------------

A Dataset, a DataLoader, a list of batches, a DataModule, or a function that returns one of these. The set is drawn
once, seeded, without replacement.

* **A DataLoader** stands for its data set, collated as it would, not for its shuffle; rows that its
  `SubsetRandomSampler` leaves out stay out. A DataModule stands for its training loader. ``reference=None`` keeps the
  first training batches of a fit, augmentations included.
* **Graphs, and batches of other kinds.** Give the loader, such as ``torch_geometric.loader.DataLoader(graphs,
  batch_size=16)``: the graphs that a minibatch asks for are collated anew, as the loader would. The loss is one a
  graph, or a scalar. A list of batches of one graph each works as well; a single batch of many graphs counts as one
  sample. Images of several sizes, targets in a dict each, strings and packed sequences stay with their samples. Where
  samples are not the first dimension, give a DataLoader: it says what its samples are.
* **Augmented data.** The reference may be the training data itself. Its samples are read once, augmented with a seed,
  and every generator that its transforms own is put back. A counter or an iterator that reading has moved is named in a
  warning: then give ``copy.deepcopy(data)``.
"""
