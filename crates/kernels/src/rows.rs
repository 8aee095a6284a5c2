//! Row-major views of f32 activations.

/// `rows` rows of `cols` numbers, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// At least `(rows - 1) * stride + cols` numbers.
    pub data: &'a [f32],
    /// Tokens.
    pub rows: usize,
    /// Numbers of a row.
    pub cols: usize,
    /// Numbers from the start of one row to the next.
    pub stride: usize,
}

/// [`Rows`] that are written.
#[derive(Debug)]
pub struct RowsMut<'a> {
    /// At least `(rows - 1) * stride + cols` numbers.
    pub data: &'a mut [f32],
    /// Tokens.
    pub rows: usize,
    /// Numbers of a row.
    pub cols: usize,
    /// Numbers from the start of one row to the next.
    pub stride: usize,
}

fn check(length: usize, rows: usize, cols: usize, stride: usize) {
    assert!(
        rows <= 1 || stride >= cols,
        "rows of {cols} numbers overlap at stride {stride}"
    );
    assert!(
        rows == 0 || length >= (rows - 1) * stride + cols,
        "{rows} rows of {cols} at stride {stride} need more than {length} numbers"
    );
}

impl<'a> Rows<'a> {
    /// Contiguous rows.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        let view = Self {
            data,
            rows,
            cols,
            stride: cols,
        };
        view.check();
        view
    }

    pub(crate) fn check(&self) {
        check(self.data.len(), self.rows, self.cols, self.stride);
    }

    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..self.cols]
    }
}

impl<'a> RowsMut<'a> {
    /// Contiguous rows.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        let view = Self {
            data,
            rows,
            cols,
            stride: cols,
        };
        view.check();
        view
    }

    pub(crate) fn check(&self) {
        check(self.data.len(), self.rows, self.cols, self.stride);
    }

    /// Calls `f` with the number and the numbers of each row, in parallel by groups of rows.
    pub(crate) fn for_each(self, f: impl Fn(usize, &mut [f32]) + Sync) {
        self.check();
        let (rows, cols, stride) = (self.rows, self.cols, self.stride);
        let data = Shared(self.data.as_mut_ptr());
        let group = (crate::threads::GRAIN / cols.max(1)).max(1);
        crate::threads::parallel(rows.div_ceil(group), |task| {
            for row in task * group..((task + 1) * group).min(rows) {
                // SAFETY: checked above; rows do not overlap and each is visited once.
                f(row, unsafe {
                    std::slice::from_raw_parts_mut(data.at(row * stride), cols)
                });
            }
        });
    }
}

/// A pointer whose disjoint parts are written by several threads.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);

// SAFETY: those who write through it write disjoint parts, which each `unsafe` there argues.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The address of an element.
    pub(crate) fn at(self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}
