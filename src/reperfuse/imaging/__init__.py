"""Images in and out: volumes with their geometry and time, DICOM, and what must not leave the inbox."""
