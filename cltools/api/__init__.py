"""What researchers call from their own code, without a config: `import cltools` gives these names.

The functions here take what callers have (lists, arrays, tensors of any float type and device),
check it, and call the formulas, which stay in `cltools.maths`.
"""
