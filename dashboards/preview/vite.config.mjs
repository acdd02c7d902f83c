// One bundle, without splitting: the page is opened once for each dashboard.
import { defineConfig } from 'vite';

export default defineConfig({
  base: './',
  logLevel: 'error',
  define: { 'process.env.NODE_ENV': '"production"', 'process.env': '{}' },
  build: { outDir: 'dist', minify: false, chunkSizeWarningLimit: 20_000, reportCompressedSize: false },
});
