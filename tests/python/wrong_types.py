"""What mypy must refuse; each line says by which error. For test_typing.py; nobody runs it."""

import torch

import dmamba

dmamba.train(3)  # arg-type
dmamba.train("hopper-sample", progess=False)  # call-arg
run: int = dmamba.train("hopper-sample")  # assignment
dmamba.Run("run").sumary()  # attr-defined
dmamba.evaluate("run", targets="1800")  # arg-type
dmamba.nn.DMamba(11)  # call-arg
dmamba.data.SegmentDataset("hopper", 20)  # arg-type
dmamba.data.recrod("run", "mine.hdf5")  # attr-defined
dmamba.data.record("run")  # call-arg
dmamba.ops.selective_scan(torch.ones(1))  # call-overload
print(dmamba.sweep("hopper-sample", ["K=5"]).best)  # attr-defined
dmamba.Config().model.d_modell = 3  # attr-defined
