"""Version 1.2: the kinds and the action of spec/METHODS.md. R133 to R136, beside files that break none of them."""
from builder import adapter, layer, lora, model, opaque, tensor
from kit import bad, ok

# One layer of each row of the table, in each way to store its matrices: the kind, the rank, and the shape of each role.
HADAMARD = "hadamard", 2, {"w1_a": [4, 2], "w1_b": [2, 3], "w2_a": [4, 2], "w2_b": [2, 3]}
HADAMARD_OF_CORES = "hadamard", 2, {"w1_a": [2, 4], "w1_b": [2, 3], "t1": [2, 2, 3, 5], "w2_a": [2, 4], "w2_b": [2, 3], "t2": [2, 2, 3, 5]}
LEFT = {"whole": {"w1": [2, 3]}, "product": {"w1_a": [2, 5], "w1_b": [5, 3]}}
RIGHT = {"whole": {"w2": [3, 4]}, "product": {"w2_a": [3, 5], "w2_b": [5, 4]},
         "core": {"w2_a": [5, 3], "t2": [5, 5, 3, 1], "w2_b": [5, 4]}}
OUTPUTS = "output-scaling", 1, {"vector": [4]}
INPUTS = "input-scaling", 1, {"vector": [3]}
CONV = "conv", 2, {"A": [2, 3, 1, 1], "B": [4, 2, 1, 1], "core": [2, 2, 3, 5]}


def kronecker(left, right):
    return "kronecker", 1 if left == right == "whole" else 5, LEFT[left] | RIGHT[right]


KRONECKERS = {f"{left}-{right}": kronecker(left, right) for left in LEFT for right in RIGHT}


def edited(m, *without, rank=None, kind=None, **shapes):
    """The layer m with other shapes, without roles, with another rank or kind."""
    return kind or m[0], rank or m[1], {k: v for k, v in (m[2] | shapes).items() if k not in without}


def of(*layers, dtype="U8", requires=()):
    """A model with these layers, in modules a, b, …"""
    records, ts = [], []
    for i, (kind, rank, shapes) in enumerate(layers):
        at = {role: len(ts) + k for k, role in enumerate(shapes)}
        ts += [tensor(f"{chr(97 + i)}.{role}", dtype, s) for role, s in shapes.items()]
        records.append(layer(chr(97 + i), at, rank, kind=kind))
    return model([adapter(layers=records, method="other:lycoris", requires=[{"feature": "lycoris", "where": ""}, *requires])], ts)


def add():
    valid()
    roles()
    shapes()
    others()


def valid():
    def fine(name, comment, *layers, minor=2, **more):
        m = of(*layers, **more)
        ok(name, lora(m, minor=minor), m, comment)

    fine("methods", "each kind of 1.2, in each way to store its matrices, and a conv with a core", HADAMARD, HADAMARD_OF_CORES,
         *KRONECKERS.values(), OUTPUTS, INPUTS, CONV, dtype="F32")
    fine("methods-minor-0", "kinds of 1.2 in a file of minor 0: no rule forbids them", HADAMARD, OUTPUTS, minor=0)
    fine("methods-minor-3", "kinds of 1.2 in a file of a later minor", HADAMARD, INPUTS, minor=3)
    fine("hadamard-products-of-dimensions", "N is a product, written in other dimensions for each of the two matrices",
         edited(HADAMARD, w1_b=[2, 2, 3, 5], w2_b=[2, 6, 5]), edited(HADAMARD, w1_b=[2, 3, 1, 1, 1, 1], w2_b=[2, 3]))
    fine("hadamard-kernels", "kernels of one and of three dimensions, and of one element",
         *(edited(HADAMARD_OF_CORES, t1=[2, 2, *k], t2=[2, 2, *k]) for k in ([3], [1, 1], [2, 3, 2])))
    fine("hadamard-other-roles", "roles that are free: alpha, magnitude, and one that nobody knows",
         edited(HADAMARD, alpha=[], magnitude=[4]), edited(HADAMARD, input_magnitude=[3], W1_A=[7]), edited(HADAMARD, w3_a=[0]))
    fine("hadamard-square", "m, n and r are one number", edited(HADAMARD, w1_a=[2, 2], w1_b=[2, 2], w2_a=[2, 2], w2_b=[2, 2]),
         edited(HADAMARD_OF_CORES, w1_a=[2, 2], w1_b=[2, 2], w2_a=[2, 2], w2_b=[2, 2]))
    fine("kronecker-kernels", "whole right matrices with kernels of one to three dimensions; products with J in two to four",
         *(edited(KRONECKERS["whole-whole"], w2=[3, 4, *k]) for k in ([3], [3, 3], [1, 2, 2])),
         *(edited(KRONECKERS["whole-product"], w2_b=[5, 4, *k]) for k in ([3], [3, 3])),
         edited(KRONECKERS["product-core"], t2=[5, 5, 2]))
    fine("kronecker-of-one", "a left and a right matrix of one element", edited(KRONECKERS["whole-whole"], w1=[1, 1], w2=[1, 1]),
         edited(KRONECKERS["product-product"], w1_a=[1, 1], w1_b=[1, 1], w2_a=[1, 1], w2_b=[1, 1], rank=1))
    fine("scaling-vectors", "vectors with dimensions of 1 around the numbers, and of two dimensions; an axis",
         edited(OUTPUTS, vector=[4, 1, 1, 1]), edited(OUTPUTS, vector=[1, 4], axis=[]), edited(INPUTS, vector=[1]),
         edited(INPUTS, vector=[2, 3], axis=[1]))
    fine("conv-cores", "cores of one and three dimensions of kernel; a bias, a magnitude, and a core of a linear layer, which is free",
         edited(CONV, A=[2, 3, 1], B=[4, 2, 1], core=[2, 2, 3], bias=[4]),
         edited(CONV, A=[2, 3, 1, 1, 1], B=[4, 2, 1, 1, 1], core=[2, 2, 1, 2, 2], magnitude=[4]),
         edited(CONV, kind="linear", A=[2, 3], B=[4, 2], core=[1]), edited(CONV, kind="other", A=[9], B=[], core=[1]))
    fine("input-magnitude", "magnitudes of the inputs in a linear layer, a convolution and a Kronecker product; their number is free",
         ("linear", 2, {"A": [2, 3], "B": [4, 2], "input_magnitude": [3]}), edited(CONV, input_magnitude=[9]),
         edited(KRONECKERS["whole-whole"], input_magnitude=[1, 12]))
    m = model([adapter(beside=[{"action": "difference", "target": "norm.weight", "tensor": 0}, {"action": "difference", "target": "norm.bias", "tensor": 1},
                               {"action": "opaque", "tensor": 2}, {"action": "difference", "target": "norm.weight", "tensor": 3}])],
              [tensor("z", "F32", [3]), tensor("y", "BF16", [3, 1]), tensor("x", "U8", []), tensor("w", "I8", [0])])
    ok("difference", lora(m, minor=2), m, "differences, two of them for one target, and an opaque tensor between")


def broken(name, comment, m, minor=2, **more):
    bad(name, lora(of(m), minor=minor), comment, **more)


def roles():
    def r133(name, comment, m, **more): broken("r133-" + name, comment, m, **more)
    for name, m in {"hadamard": HADAMARD, "hadamard-of-cores": HADAMARD_OF_CORES, "output-scaling": OUTPUTS, "input-scaling": INPUTS, **{
            "kronecker-" + k: m for k, m in KRONECKERS.items()}}.items():
        for missing in m[2]:
            # One core less leaves roles of no row. A reader may see two matrices that do not go together.
            also = "R133 R134" if missing in ("t1", "t2") else None
            r133(f"{name}-without-{missing.replace('_', '-')}", f"no {missing}", edited(m, missing), rule=also)
        for more, shape in (("A", [2, 3]), ("B", [4, 2]), ("bias", [4]), ("core", [2, 2, 1])):
            if name in ("hadamard", "kronecker-whole-core", "output-scaling"):
                r133(f"{name}-with-{more.lower()}", f"the role {more} beside those of the kind", edited(m, **{more: shape}))
    r133("hadamard-with-w1", "a w1 beside its factors", edited(HADAMARD, w1=[4, 3]))
    r133("hadamard-with-vector", "a vector", edited(HADAMARD, vector=[4]))
    r133("hadamard-of-one-core", "a core for the first matrix alone; all numbers are 2", edited(HADAMARD_OF_CORES, "t2", w1_a=[2, 2], w1_b=[2, 2],
         t1=[2, 2, 1, 1], w2_a=[2, 2], w2_b=[2, 2]))
    r133("kronecker-both-left", "a whole left matrix and its factors", edited(KRONECKERS["product-whole"], w1=[2, 3]))
    r133("kronecker-both-right", "a whole right matrix and its factors", edited(KRONECKERS["whole-product"], w2=[3, 4]))
    r133("kronecker-whole-and-core", "a whole right matrix and a core", edited(KRONECKERS["whole-whole"], t2=[1, 1, 1]))
    r133("kronecker-core-on-the-left", "a core of the left matrix", edited(KRONECKERS["product-whole"], t1=[5, 5, 1]))
    r133("kronecker-left-only", "no right matrix", edited(KRONECKERS["whole-whole"], "w2"))
    r133("output-scaling-of-factors", "A and B in place of a vector", ("output-scaling", 1, {"A": [1, 3], "B": [4, 1]}))
    r133("input-scaling-with-w1-a", "a factor of another method", edited(INPUTS, w1_a=[3, 1]))
    r133("input-scaling-axis-only", "an axis and no vector", ("input-scaling", 1, {"axis": []}))
    r133("no-roles", "no role", ("hadamard", 1, {}))
    r133("upper-case", "W1 and W2", ("kronecker", 1, {"W1": [2, 3], "W2": [3, 4]}))


def shapes():
    def r134(name, comment, m, **more): broken("r134-" + name, comment, m, **more)
    for name, comment, shapes in (
            ("rank-of-w1-a", "m x 3, rank 2", {"w1_a": [4, 3]}), ("rank-of-w1-b", "3 x N, rank 2", {"w1_b": [3, 3]}),
            ("rank-of-w2-a", "m x 3, rank 2", {"w2_a": [4, 3]}), ("rank-of-w2-b", "3 x N, rank 2", {"w2_b": [3, 3]}),
            ("rows-differ", "4 and 5 outputs", {"w2_a": [5, 2]}), ("columns-differ", "3 and 4 columns", {"w2_b": [2, 4]}),
            ("columns-differ-by-a-kernel", "3 and 27 columns", {"w2_b": [2, 3, 3, 3]}),
            ("w1-a-transposed", "r x m", {"w1_a": [2, 4]}), ("w1-b-transposed", "N x r", {"w1_b": [3, 2]}),
            ("w1-a-of-four-dimensions", "m x r x 1 x 1", {"w1_a": [4, 2, 1, 1]}), ("w1-b-of-one-dimension", "r alone", {"w1_b": [2]}),
            ("w2-b-scalar", "a scalar", {"w2_b": []}), ("no-outputs", "m is 0", {"w1_a": [0, 2], "w2_a": [0, 2]}),
            ("no-inputs", "N is 0", {"w1_b": [2, 0], "w2_b": [2, 0]}), ("empty-kernel", "N is 0", {"w1_b": [2, 3, 0], "w2_b": [2, 3, 0]})):
        r134("hadamard-" + name, comment, edited(HADAMARD, **shapes))
    r134("hadamard-another-rank", "the factors have r = 2, the layer 3", edited(HADAMARD, rank=3))
    r134("hadamard-rank-1", "the factors have r = 2, the layer 1", edited(HADAMARD, rank=1))
    for name, comment, shapes in (
            ("not-transposed", "w1_a is m x r", {"w1_a": [4, 2]}), ("rows-differ", "4 and 5 outputs", {"w2_a": [2, 5]}),
            ("columns-differ", "3 and 4 inputs", {"w1_b": [2, 4]}), ("kernels-differ", "kernels 3 x 5 and 3 x 3", {"t2": [2, 2, 3, 3]}),
            ("kernels-turned", "kernels 3 x 5 and 5 x 3", {"t2": [2, 2, 5, 3]}), ("kernels-of-other-dimensions", "kernels 3 x 5 and 15", {"t2": [2, 2, 15]}),
            ("kernels-with-a-one", "kernels 3 x 5 and 3 x 5 x 1", {"t2": [2, 2, 3, 5, 1]}),
            ("without-kernel", "both cores are r x r", {"t1": [2, 2], "t2": [2, 2]}), ("core-not-square", "t1 is 2 x 3", {"t1": [2, 3, 3, 5]}),
            ("core-of-another-rank", "t2 is 3 x 3", {"t2": [3, 3, 3, 5]}), ("kernel-in-w1-b", "w1_b has a kernel of its own", {"w1_b": [2, 3, 1, 1]}),
            ("empty-kernel", "kernels 3 x 0", {"t1": [2, 2, 3, 0], "t2": [2, 2, 3, 0]}), ("no-inputs", "n is 0", {"w1_b": [2, 0], "w2_b": [2, 0]})):
        r134("hadamard-cores-" + name, comment, edited(HADAMARD_OF_CORES, **shapes))
    r134("hadamard-cores-another-rank", "the cores have r = 2, the layer 4", edited(HADAMARD_OF_CORES, rank=4))
    for way, name, comment, shapes in (
            ("whole-whole", "w1-of-one-dimension", "6 elements", {"w1": [6]}), ("whole-whole", "w1-with-kernel", "o x i x 1 x 1", {"w1": [2, 3, 1, 1]}),
            ("whole-whole", "w2-of-one-dimension", "12 elements", {"w2": [12]}), ("whole-whole", "w2-scalar", "a scalar", {"w2": []}),
            ("whole-whole", "w1-empty", "i is 0", {"w1": [2, 0]}), ("whole-whole", "w2-empty", "p is 0", {"w2": [0, 4]}),
            ("whole-whole", "w2-empty-kernel", "a kernel of 3 x 0", {"w2": [3, 4, 3, 0]}),
            ("product-whole", "w1-a-transposed", "r x o", {"w1_a": [5, 2]}), ("product-whole", "w1-b-with-kernel", "r x i x 1", {"w1_b": [5, 3, 1]}),
            ("product-product", "two-ranks", "r is 4 on the left and 5 on the right", {"w1_a": [2, 4], "w1_b": [4, 3]}),
            ("whole-product", "w2-a-of-three-dimensions", "p x r x 1", {"w2_a": [3, 5, 1]}), ("whole-product", "w2-b-of-one-dimension", "r alone", {"w2_b": [5]}),
            ("whole-product", "w2-b-of-another-rank", "4 x J, r is 5", {"w2_b": [4, 4]}),
            ("whole-core", "w2-a-not-transposed", "p x r", {"w2_a": [3, 5]}), ("whole-core", "t2-without-kernel", "r x r", {"t2": [5, 5]}),
            ("whole-core", "t2-not-square", "5 x 4", {"t2": [5, 4, 3, 1]}), ("whole-core", "w2-b-with-kernel", "r x j x 3 x 1", {"w2_b": [5, 4, 3, 1]}),
            ("product-core", "no-inputs", "j is 0", {"w2_b": [5, 0]})):
        r134("kronecker-" + name, comment, edited(KRONECKERS[way], **shapes))
    for way, m in KRONECKERS.items():
        r134(f"kronecker-{way}-another-rank", f"the layer has the rank {m[1] + 1}", edited(m, rank=m[1] + 1))
    r134("kronecker-whole-whole-rank-2", "the rank 2, and no r in the shapes", edited(KRONECKERS["whole-whole"], rank=2, w1=[2, 2], w2=[2, 2]), rows="")
    for kind, m in ("output", OUTPUTS), ("input", INPUTS):
        r134(f"{kind}-scaling-rank-2", "the rank 2, and no r in the shapes", edited(m, rank=2))
        r134(f"{kind}-scaling-scalar", "a vector without dimensions", edited(m, vector=[]))
        r134(f"{kind}-scaling-empty", "a vector without elements", edited(m, vector=[0]))
        r134(f"{kind}-scaling-0-by-4", "a vector of 4 x 0", edited(m, vector=[4, 0]))


def others():
    for name, comment, shapes in (
            ("without-kernel", "a core r x r; A and B are r x n and m x r", {"A": [2, 3], "B": [4, 2], "core": [2, 2]}),
            ("core-of-three-dimensions", "A and B have four dimensions, the core has three", {"core": [2, 2, 3]}),
            ("a-of-three-dimensions", "A has three dimensions, B and the core have four", {"A": [2, 3, 1]}),
            ("b-of-five-dimensions", "B has five dimensions, A and the core have four", {"B": [4, 2, 1, 1, 1]}),
            ("kernel-in-a", "A is r x n x 3 x 5, as without a core", {"A": [2, 3, 3, 5]}), ("kernel-in-b", "B is m x r x 3 x 1", {"B": [4, 2, 3, 1]}),
            ("core-not-square", "a core of 2 x 3", {"core": [2, 3, 3, 5]}), ("core-of-another-rank", "a core of 3 x 3", {"core": [3, 3, 3, 5]}),
            ("a-of-another-rank", "A is 3 x n", {"A": [3, 3, 1, 1]}), ("b-of-another-rank", "B is m x 1", {"B": [4, 1, 1, 1]}),
            ("a-transposed", "A is n x r", {"A": [3, 2, 1, 1]}), ("empty-kernel", "a core with a kernel of 3 x 0", {"core": [2, 2, 3, 0]}),
            ("no-inputs", "n is 0", {"A": [2, 0, 1, 1]}), ("no-outputs", "m is 0", {"B": [0, 2, 1, 1]}), ("core-scalar", "the core is a scalar", {"core": []})):
        broken("r135-" + name, comment, edited(CONV, **shapes))
    broken("r135-another-rank", "the core has r = 2, the layer 1", edited(CONV, rank=1))
    broken("r135-minor-0", "a core of 3 x 3 and r = 2, in a file of minor 0", edited(CONV, core=[3, 3, 1, 1]), minor=0)
    for name, m in {"linear": ("linear", 2, {"A": [2, 3], "B": [4, 2]}), "conv": CONV, "hadamard": HADAMARD, "kronecker": KRONECKERS["whole-whole"],
                    "expert": ("expert", 1, {"A": [2, 3], "B": [4, 2]}), "other": ("other", 1, {})}.items():
        broken(f"r136-{name}", f"both magnitudes in a layer of the kind {name}", edited(m, magnitude=[4], input_magnitude=[3]))
    broken("r38-conv-with-core-without-b", "a conv layer with a core and no B", edited(CONV, "B"))
    broken("r29-kind-lokr", "kind lokr", edited(KRONECKERS["whole-whole"], kind="lokr"))
    broken("r29-kind-scaling", "kind scaling", edited(OUTPUTS, kind="scaling"))
    broken("r73-input-magnitude", "an input magnitude of square experts",
           ("expert-inputs", 1, {"A": [2, 3], "B": [3, 2], "input_magnitude": [3]}))

    def beside(name, record, comment, **more):
        m = opaque(tensor("a", "F32", [2]))
        m.manifest["adapters"][0]["beside"] = [{"action": "difference", "tensor": 0} | record]
        bad(name, lora(m, minor=more.pop("minor", 2)), comment, **more)
    beside("r26-difference-without-target", {}, "a difference without a target")
    beside("r27-difference-with-rows", {"rows": [0, 1], "target": "t"}, "a difference with rows", minor=0)
    beside("r31-difference-empty-target", {"target": ""}, "a difference with an empty target")
    beside("r28-difference-target-number", {"target": 1}, "a difference whose target is a number")
    beside("r29-action-add", {"action": "add", "target": "t"}, "action add")
