import unittest

from .. import figures


class Medians(unittest.TestCase):
    def test_odd_and_even_counts(self):
        self.assertEqual(figures.median([3, 1, 2]), 2)
        self.assertEqual(figures.median([4, 1, 2, 3]), 2.5)

    def test_nothing_is_dropped_silently(self):
        self.assertIsNone(figures.median([]))
        self.assertIsNone(figures.median([1, None, 3]))


class Ratios(unittest.TestCase):
    def test_they_are_taken_round_by_round(self):
        # The machine was half as fast in the second round: the ratios do not see it.
        self.assertEqual(figures.ratios([200, 100, 240], [100, 50, 100]), [2, 2, 2.4])

    def test_the_median_of_ratios_is_not_the_ratio_of_medians(self):
        ours, theirs = [10, 20, 60], [10, 40, 30]
        self.assertEqual(figures.median(figures.ratios(ours, theirs)), 1)
        self.assertNotEqual(figures.median(ours) / figures.median(theirs), 1)

    def test_so_are_differences(self):
        self.assertEqual(figures.differences([5, None, 3, 1], [4, 2, None, 3]), [1, None, None, -2])

    def test_a_round_without_a_figure_has_no_ratio(self):
        self.assertEqual(figures.ratios([1, None, 3], [1, 2, None]), [1, None, None])
        self.assertEqual(figures.ratios([1], [0]), [None])

    def test_different_numbers_of_rounds_are_refused(self):
        for combine in (figures.ratios, figures.differences):
            with self.assertRaises(ValueError):
                combine([1, 2], [1])


class Best(unittest.TestCase):
    def test_the_direction_counts(self):
        medians = {"a": 1, "b": 2, "c": None}
        self.assertEqual(figures.best(medians, figures.HIGHER), "b")
        self.assertEqual(figures.best(medians, figures.LOWER), "a")

    def test_none_of_nothing(self):
        self.assertIsNone(figures.best({"a": None}, figures.HIGHER))


class Show(unittest.TestCase):
    def test_scale_and_absence(self):
        self.assertEqual(figures.show(figures.FIGURES["bytes_per_second"], 12_345_678), "12.3")
        self.assertEqual(figures.show(figures.FIGURES["requests_per_second"], None), "–")


if __name__ == "__main__":
    unittest.main()
