from tests.filters.corpus import pin

pin()
