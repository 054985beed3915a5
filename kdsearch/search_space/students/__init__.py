"""Student architectures, and the transforms that make any of them cheaper.

>>> from kdsearch.search_space import students
>>> students.create("resnet", depth=8)
ResNet(depth=8, width=1.0)
"""

from kdsearch.search_space.students.family import STUDENTS, StudentFamily, create, names
from kdsearch.search_space.students.transforms import TRANSFORMS, StudentTransform

__all__ = ["STUDENTS", "TRANSFORMS", "StudentFamily", "StudentTransform", "create", "names"]
