import { defineConfig } from "vite";

// One script, one for charts and one style sheet with relative addresses: the daemon serves them below any path.
export default defineConfig({
  base: "./",
  publicDir: false,
  build: {
    outDir: "../dispatcher/web",
    emptyOutDir: true,
    target: "es2022",
    cssTarget: "es2024",
    assetsInlineLimit: 0,
    modulePreload: false,
    reportCompressedSize: false,
    cssCodeSplit: false,
    rollupOptions: {
      output: {
        entryFileNames: "assets/app-[hash].js",
        chunkFileNames: "assets/[name]-[hash].js",
        assetFileNames: "assets/[name]-[hash][extname]",
      },
    },
  },
});
