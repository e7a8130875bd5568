from tests.unit.filters.corpus import pin

pin()
