"""Reports: pages that are read by people, pictures for documents, from what load tests measured.

``bench.render`` and ``differences.render`` are the pages of ``sluice bench``; ``compare``,
``scale`` and ``soak`` draw what the load tests of the same names found. ``look`` has the colours,
``draw`` turns Vega-Lite charts into SVG, ``page`` makes one file of it all, which opens without a
network.
Needs `pip install 'sluicegate[bench]'`.
"""
