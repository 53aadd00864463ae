"""What the module needs of the application's own Python: a disk that keeps annotations, and verified TLS.

Slicer runs it as a unit test of the build; any other Python runs it with ``python DCAFReviewJournalTest.py``.
"""

import ssl
import sys
import tempfile
import unittest
from pathlib import Path

MODULE = Path(__file__).resolve().parents[2]
if str(MODULE) not in sys.path:
    sys.path.append(str(MODULE))


class DCAFReviewJournalTest(unittest.TestCase):
    """The parts that are the same in and out of the application."""

    def test_an_annotation_outlives_the_journal_that_took_it(self):
        from DCAFReviewLib.journal import Journal

        with tempfile.TemporaryDirectory() as folder:
            key = Journal(folder).add("http://127.0.0.1:8000", "1.2.3", {"label": "normal"})
            (entry,) = Journal(folder).pending("http://127.0.0.1:8000")
            self.assertEqual((entry.key, entry.uid, entry.document["label"]), (key, "1.2.3", "normal"))
            Journal(folder).settle(key)
            self.assertEqual(Journal(folder).pending("http://127.0.0.1:8000"), [])

    def test_a_token_is_not_sent_in_the_open_to_another_computer(self):
        from DCAFReviewLib.client import Address

        with self.assertRaises(ValueError):
            Address("http://hospital.example:8000", token="secret")
        self.assertNotIn("secret", repr(Address("http://127.0.0.1:8000", token="secret")))

    def test_certificates_are_verified_by_default(self):
        context = ssl.create_default_context()
        self.assertTrue(context.check_hostname)
        self.assertEqual(context.verify_mode, ssl.CERT_REQUIRED)


if __name__ == "__main__":
    unittest.main()
