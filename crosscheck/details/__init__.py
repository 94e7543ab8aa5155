"""What a page shows of single sites, gathered while the arrays are there.

`stage` gathers, `spread` says where in a tensor the sides differ, `concentration` says it in words.
"""
